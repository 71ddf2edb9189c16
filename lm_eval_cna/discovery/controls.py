"""Controls: random neurons and vectors, matched to what was found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, overload

import torch

from lm_eval_cna.discovery.ranking import positions
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit, describe_for_vectors, describe_model, identity_of
from lm_eval_cna.interventions.header import Match, stamp
from lm_eval_cna.interventions.methods import THIRDS, third_of_layers
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.neurons import SHARED, Neuron, NeuronLayout, Place, neuron_at

MATCH_POOL = 20  # neurons among which an activation-matched control draws


@overload
def control(
    model: Any,
    like: Circuit,
    *,
    seed: int,
    match: Match = ...,
    magnitudes: torch.Tensor | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> Circuit: ...


@overload
def control(
    model: Any,
    like: Vectors,
    *,
    seed: int,
    match: Match = ...,
    magnitudes: torch.Tensor | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> Vectors: ...


def control(
    model: Any,
    like: Circuit | Vectors,
    *,
    seed: int,
    match: Match = "layer",
    magnitudes: torch.Tensor | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> Circuit | Vectors:
    """Draw a random circuit or random vectors matched to `like`; the model is looked at and not run.

    Args:
        model: the model that `like` was found on.
        like: a circuit, which gives a `random` one, or vectors, which give `random-vectors`. The universal neurons that
            a circuit's header names are not drawn; a circuit found without the filter names none.
        seed: one control a seed.
        match: where the neurons of a `random` circuit are drawn: "layer", in the layer of the circuit's at the same
            place, among neurons of its kind (`discovery.random_neurons`); "activation", there among those of similar
            mean |activation|; "bottom", "middle" or "top", anywhere in that third of the layers, less those that the
            circuit's discovery left out.
        magnitudes: for "activation": mean |activation| of every neuron [neurons], as
            `measure(..., read=("magnitudes",))` finds it.
        model_id: written into the file; by default what the model says of itself.
        revision: likewise.

    Raises:
        InterventionError: `like` does not fit the model.
        ConfigError: too few neurons are left to draw from, or magnitudes are missing.
    """
    architecture = find_architecture(model)
    check_fit(like, architecture)
    identity = dict(zip(("id", "revision"), identity_of(model, model_id, revision), strict=True))
    origin: dict[str, Any] = {"seed": seed, "like_sha256": like.sha256, **stamp()}
    name = f"{like.name}-random-{seed}"
    if isinstance(like, Vectors):
        return Vectors(
            method="random-vectors",
            place=like.place,
            name=name,
            model=describe_for_vectors(architecture, like.layers, **identity),
            discovery=like.discovery.model_copy(update=origin),
            tensors=random_vectors(like.tensors, seed=seed),
        )
    neurons = _draw(like, architecture, seed, match, magnitudes)
    return Circuit(
        method="random",
        name=name if match == "layer" else f"{name}-{match}",
        model=describe_model(architecture, (neuron.place for neuron in neurons), **identity),
        discovery=like.discovery.model_copy(update={**origin, "match": match}),
        neurons=neurons,
    )


def _draw(
    like: Circuit, architecture: Architecture, seed: int, match: Match, magnitudes: torch.Tensor | None
) -> tuple[Neuron, ...]:
    layout, found = architecture.layout, like.discovery.universal_filter
    universal = () if found is None else found.neurons
    if match in THIRDS:
        third = third_of_layers(len(architecture.layers), match)
        layers = [layer for layer in third if layer not in like.discovery.excluded_layers]
        return random_neurons_of(like.neurons, layout, layers, seed=seed, universal=universal)
    if match == "activation" and magnitudes is None:
        raise ConfigError("activation-matched controls need the neurons' mean |activation|")
    near = magnitudes if match == "activation" else None
    return random_neurons(like.neurons, layout, seed=seed, universal=universal, magnitudes=near)


def random_neurons(
    like: Sequence[Neuron],
    layout: NeuronLayout,
    *,
    seed: int,
    universal: Iterable[Place] = (),
    magnitudes: torch.Tensor | None = None,
) -> tuple[Neuron, ...]:
    """Draw a control circuit: its i-th neuron lies in the layer of the i-th of `like`, and is of its kind.

    Kinds are the dense MLP, the shared expert, and the routed experts, all of the layer's together: which experts a
    circuit lies in is part of what was found, so a control may lie in others. Neither a neuron of `like` nor a
    universal one is drawn, and none twice. A draw looks only at what was drawn before it, so a prefix of the control is
    the control of a prefix that leaves the whole circuit alone. Draws come from `random.Random`, whose sequence Python
    keeps across versions.

    Args:
        like: the circuit to match.
        layout: where each neuron of the model stands.
        seed: one control a seed.
        universal: neurons that are not drawn.
        magnitudes: mean |activation| of every neuron [neurons]; where given, a draw is among the `MATCH_POOL`
            remaining neurons of the layer and kind whose mean |activation| is nearest to that of the matched neuron.
            Without, it is uniform.

    Raises:
        ConfigError: a layer has too few neurons left.
    """
    taken = positions((neuron.place for neuron in like), layout) | positions(universal, layout)
    peers = [layout.peers(neuron) for neuron in like]
    wanted_of = Counter(peers)
    left = {span: [position for position in span if position not in taken] for span in wanted_of}
    for neuron, span in zip(like, peers, strict=True):
        free, wanted = left[span], wanted_of[span]
        if wanted > len(free):
            raise ConfigError(
                f"{_owner(neuron)} has {len(free)} neurons that are neither in the circuit nor universal",
                got=f"{wanted} to draw",
                do="match a smaller circuit",
            )
    generator = random.Random(f"lm-eval-cna random {seed}")
    # Lists are slow to index by, and an expert layer may have 100,000 neurons: sizes go along as a tensor.
    sizes = {} if magnitudes is None else {span: magnitudes[free] for span, free in left.items()}
    drawn = []
    for neuron, span in zip(like, peers, strict=True):
        free = left[span]
        if magnitudes is None:
            at = int(generator.random() * len(free))
        else:
            near = _nearest(sizes[span], magnitudes[layout.position(neuron.place)])
            at = int(near[int(generator.random() * len(near))])
            sizes[span] = torch.cat((sizes[span][:at], sizes[span][at + 1 :]))
        drawn.append(neuron_at(layout.place(free.pop(at))))
    return tuple(drawn)


def _nearest(values: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Where the `MATCH_POOL` values stand that are nearest to a number, nearest first, the earlier of equals first."""
    away = (values - to).abs()
    if len(away) > MATCH_POOL:
        among = (away <= away.kthvalue(MATCH_POOL).values).nonzero().squeeze(1)
        return among[away[among].sort(stable=True).indices[:MATCH_POOL]]
    return away.sort(stable=True).indices


def _owner(neuron: Neuron) -> str:
    """Where a neuron's peers lie, in words."""
    kind = "" if neuron.expert is None else "the shared expert of " if neuron.expert == SHARED else "the experts of "
    return f"{kind}layer {neuron.layer}"


def random_neurons_of(
    like: Sequence[Neuron],
    layout: NeuronLayout,
    layers: Collection[int],
    *,
    seed: int,
    universal: Iterable[Place] = (),
) -> tuple[Neuron, ...]:
    """Draw a control circuit as large as `like`, uniformly among the neurons of some layers, of whatever kind.

    Neither a neuron of `like` nor a universal one is drawn, and none twice. As with `random_neurons`, a prefix of the
    control is the control of a prefix that leaves the whole circuit alone.

    Args:
        like: the circuit whose size is matched.
        layout: where each neuron of the model stands.
        layers: the layers to draw from.
        seed: one control a seed and set of layers.
        universal: neurons that are not drawn.

    Raises:
        ConfigError: the layers have too few neurons left.
    """
    taken = positions((neuron.place for neuron in like), layout) | positions(universal, layout)
    free = [position for layer in sorted(layers) for position in layout.of_layer(layer) if position not in taken]
    if len(like) > len(free):
        raise ConfigError(
            f"the {len(layers)} layers to draw from have {len(free)} neurons that are neither in the circuit nor "
            "universal",
            got=f"{len(like)} to draw",
            do="match a smaller circuit, or by layer",
        )
    generator = random.Random(f"lm-eval-cna random {seed} of layers {sorted(layers)}")
    # As in `random_neurons`, `random()` alone: Python keeps its sequence across versions, and not `sample`'s.
    return tuple(neuron_at(layout.place(free.pop(int(generator.random() * len(free))))) for _ in like)


def random_vectors(like: Mapping[int, torch.Tensor], *, seed: int) -> dict[int, torch.Tensor]:
    """Draw control vectors: in each layer a direction uniform on the sphere, of the norm of `like`'s; float32."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for layer in sorted(like):
        direction = torch.randn(like[layer].shape, generator=generator, dtype=torch.float64)
        norm = like[layer].double().norm().cpu()
        drawn[layer] = (direction * (norm / direction.norm())).float()
    return drawn
