"""Controls: random neurons and vectors, matched to what was found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from lm_eval_cna.discovery.ranking import known_positions
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit, describe_for_vectors, describe_model, identity_of
from lm_eval_cna.interventions.header import Match, stamp
from lm_eval_cna.interventions.methods import THIRDS, third_of_layers
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.neurons import SHARED, Neuron, NeuronLayout, Place, neuron_at

MATCH_POOL = 20  # neurons among which an activation-matched control draws


def draw_neurons(
    model: Any,
    like: Circuit,
    *,
    seed: int,
    match: Match = "layer",
    magnitudes: torch.Tensor | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> Circuit:
    """Draw the control `random`: as many neurons as a circuit has. The model is looked at and not run.

    Args:
        model: the model that the circuit was found on.
        like: the circuit. The universal neurons that its header names are not drawn; a circuit that was found without
            the filter names none.
        seed: one control a seed.
        match: where neurons are drawn: "layer", in the layer of the circuit's neuron at the same place, among neurons
            of its kind (`random_neurons`); "activation", there among those of similar mean |activation|; "bottom",
            "middle" or "top", anywhere in that third of the layers, less the layers that discovery left out.
        magnitudes: for "activation": mean |activation| of every neuron [neurons], as
            `measure(..., read=("magnitudes",))` finds it.
        model_id: written into the file; by default what the model says of itself.
        revision: likewise.

    Raises:
        InterventionError: the circuit does not fit the model.
        ConfigError: too few neurons are left to draw from, or magnitudes are missing.
    """
    architecture, identity, header = _matched(model, like, seed, model_id, revision)
    layout, found = architecture.layout, like.discovery.universal_filter
    universal = () if found is None else found.neurons
    if match in THIRDS:
        third = third_of_layers(len(architecture.layers), match)
        layers = [layer for layer in third if layer not in like.discovery.excluded_layers]
        neurons = random_neurons_of(like.neurons, layout, layers, seed=seed, universal=universal)
    else:
        if match == "activation" and magnitudes is None:
            raise ConfigError("activation-matched controls need the neurons' mean |activation|")
        near = magnitudes if match == "activation" else None
        neurons = random_neurons(like.neurons, layout, seed=seed, universal=universal, magnitudes=near)
    return Circuit(
        method="random",
        name=f"{like.name}-random-{seed}" + ("" if match == "layer" else f"-{match}"),
        model=describe_model(architecture, (neuron.place for neuron in neurons), **identity),
        discovery=like.discovery.model_copy(update={**header, "match": match}),
        neurons=neurons,
    )


def draw_vectors(
    model: Any, like: Vectors, *, seed: int, model_id: str | None = None, revision: str | None = None
) -> Vectors:
    """Draw the control `random-vectors`: in each layer a random direction of the same norm. The model is not run.

    Arguments are those of `draw_neurons`.

    Raises:
        InterventionError: the vectors do not fit the model.
    """
    architecture, identity, header = _matched(model, like, seed, model_id, revision)
    return Vectors(
        method="random-vectors",
        place=like.place,
        name=f"{like.name}-random-{seed}",
        model=describe_for_vectors(architecture, like.layers, **identity),
        discovery=like.discovery.model_copy(update=header),
        tensors=random_vectors(like.tensors, seed=seed),
    )


def _matched(
    model: Any, like: Circuit | Vectors, seed: int, model_id: str | None, revision: str | None
) -> tuple[Architecture, dict[str, str | None], dict[str, Any]]:
    """The model's architecture and identity, and what the headers of all controls of one circuit or vectors share."""
    architecture = find_architecture(model)
    check_fit(like, architecture)
    identity = dict(zip(("id", "revision"), identity_of(model, model_id, revision), strict=True))
    return architecture, identity, {"seed": seed, "like_sha256": like.sha256, **stamp()}


def random_neurons(
    like: Sequence[Neuron],
    layout: NeuronLayout,
    *,
    seed: int,
    universal: Iterable[Place] = (),
    magnitudes: torch.Tensor | None = None,
) -> tuple[Neuron, ...]:
    """Draw a control circuit whose i-th neuron lies in the layer of the i-th neuron of `like`, and is of its kind.

    The kinds are the dense MLP, the shared expert, and all routed experts of a layer together: which experts a circuit
    uses is part of what was found, so a control may use others. No neuron of `like`, no universal neuron and none
    twice is drawn. Each draw depends only on earlier draws, so the first k neurons of a control are a control for the
    first k neurons of the circuit. Draws use `random.Random.random`, whose sequence no version of Python changes.

    Given mean |activation| of every neuron, a neuron is drawn among the `MATCH_POOL` remaining ones of its layer and
    kind that are nearest to the matched neuron. Without it, all remaining ones are equally likely.

    Raises:
        ConfigError: a layer has too few neurons left.
    """
    taken = known_positions((neuron.place for neuron in like), layout) | known_positions(universal, layout)
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
    """Positions of the `MATCH_POOL` values nearest to a number: nearest first, ties by position."""
    away = (values - to).abs()
    if len(away) > MATCH_POOL:
        among = (away <= away.kthvalue(MATCH_POOL).values).nonzero().squeeze(1)
        return among[away[among].sort(stable=True).indices[:MATCH_POOL]]
    return away.sort(stable=True).indices


def _owner(neuron: Neuron) -> str:
    """The layer, and for a mixture of experts the part of it, that a neuron belongs to, in words."""
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
    """Draw a control circuit as large as `like`, uniformly among all neurons of some layers.

    No neuron of `like`, no universal neuron and none twice is drawn. As with `random_neurons`, the first k neurons are
    a control for the first k neurons of the circuit.

    Raises:
        ConfigError: the layers have too few neurons left.
    """
    taken = known_positions((neuron.place for neuron in like), layout) | known_positions(universal, layout)
    free = [position for layer in sorted(layers) for position in layout.of_layer(layer) if position not in taken]
    if len(like) > len(free):
        raise ConfigError(
            f"the {len(layers)} layers to draw from have {len(free)} neurons that are neither in the circuit nor "
            "universal",
            got=f"{len(like)} to draw",
            do="match a smaller circuit, or by layer",
        )
    generator = random.Random(f"lm-eval-cna random {seed} of layers {sorted(layers)}")
    # `random()` and not `sample()`, whose sequence differs between versions of Python.
    return tuple(neuron_at(layout.place(free.pop(int(generator.random() * len(free))))) for _ in like)


def random_vectors(like: Mapping[int, torch.Tensor], *, seed: int) -> dict[int, torch.Tensor]:
    """Draw control vectors: in each layer a random direction, as long as the vector of `like`; float32."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for layer in sorted(like):
        direction = torch.randn(like[layer].shape, generator=generator, dtype=torch.float64)
        norm = like[layer].double().norm().cpu()
        drawn[layer] = (direction * (norm / direction.norm())).float()
    return drawn
