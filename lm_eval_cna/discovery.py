"""Statistics to neurons and vectors. Pure tensors: this module knows no model, no hook and no prompt.

Floor 2. Formulas: CNA is arXiv 2605.12290, CAA as that paper runs it (the mean difference of what every MLP writes);
the single-layer residual vector is Panickssery et al., arXiv 2312.06681.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.transformer.neurons import SHARED, Layout, Neuron, Place, neuron_at

UNIVERSAL_SHARE = 0.8  # the paper's: on at least 80 % of diverse prompts
MATCH_POOL = 20  # neurons among which an activation-matched control draws
LATEST_LAYER = 0.8  # Arditi et al., arXiv 2406.11717, take no direction from the last fifth of the layers


def circuit_size(fraction: float, neurons: int) -> int:
    """How many neurons a circuit has: round(fraction * all neurons of the model), at least 1.

    Raises:
        ConfigError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError("fraction of the model's neurons", got=fraction, allowed="above 0, up to 1")
    return max(1, round(fraction * neurons))


def mean_difference(means: torch.Tensor) -> torch.Tensor:
    """mean(positive) - mean(negative) of means [2, ...], positive first."""
    return means[0] - means[1]


def rank_neurons(
    delta: torch.Tensor,
    layout: Layout,
    k: int,
    *,
    excluded_layers: Collection[int] = (),
    universal: Iterable[Place] = (),
) -> tuple[Neuron, ...]:
    """The k neurons of largest |delta|, largest first, ties in the layout's order: by layer, expert and index.

    Args:
        delta: a value for every neuron, [neurons].
        layout: where each stands.
        k: the size of the circuit.
        excluded_layers: layers to leave out.
        universal: neurons to leave out, before the top k is taken.

    Raises:
        ConfigError: k is under 1 or more than there are neurons left, or a layer is not in the model.
    """
    layers = layout.num_layers
    outside = [layer for layer in excluded_layers if not 0 <= layer < layers]
    if outside:
        raise ConfigError("excluded layer", got=outside[0], allowed=f"0 to {layers - 1}")
    size = delta.abs().to(torch.float64)
    for layer in excluded_layers:
        span = layout.of_layer(layer)
        size[span.start : span.stop] = -1
    size[sorted(_positions(universal, layout))] = -1
    left = int((size >= 0).sum())
    if not 1 <= k <= left:
        raise ConfigError("circuit size", got=k, allowed=f"1 to {left}, the neurons that are not left out")
    chosen = size.sort(descending=True, stable=True).indices[:k]
    values = delta[chosen].tolist()
    return tuple(neuron_at(layout.place(i), value) for i, value in zip(chosen.tolist(), values, strict=True))


def universal_neurons(
    counts: torch.Tensor, layout: Layout, prompts: int, share: float = UNIVERSAL_SHARE
) -> tuple[Place, ...]:
    """The neurons that are in the top on at least `share` of the prompts, in the layout's order.

    Args:
        counts: prompts on which each neuron is in the top, [neurons].
        layout: where each neuron stands.
        prompts: the number of prompts.
        share: the least share of them.
    """
    needed = share * prompts - 1e-9  # 0.8 * 45 must not ask for 37
    return tuple(layout.place(position) for (position,) in (counts >= needed).nonzero().tolist())


def _positions(places: Iterable[Place], layout: Layout) -> set[int]:
    """Where neurons stand; a header may name some that the model has not."""
    return {layout.position(place) for place in places if layout.has(place)}


def caa_vectors(means: torch.Tensor) -> dict[int, torch.Tensor]:
    """One vector a layer, mean(positive) - mean(negative) of the MLP writes [2, layers, hidden]; float32."""
    return dict(enumerate(mean_difference(means).float()))


def residual_layer(means: torch.Tensor) -> int:
    """The layer of the residual stream where the classes stand furthest apart for their size.

    Largest |mean(positive) - mean(negative)| over the average of |mean(positive)| and |mean(negative)|, among the first
    80 % of the layers (at least one); the earliest of equals.

    Args:
        means: residual stream behind every layer, [2, layers, hidden].
    """
    latest = max(1, int(LATEST_LAYER * means.shape[1]))
    distance = mean_difference(means).norm(dim=-1)[:latest]
    scale = means.norm(dim=-1).mean(dim=0)[:latest].clamp(min=torch.finfo(means.dtype).tiny)
    return int((distance / scale).sort(descending=True, stable=True).indices[0])


def residual_vector(means: torch.Tensor, layer: int | None = None) -> dict[int, torch.Tensor]:
    """The mean difference of the residual stream behind one layer, the given one or `residual_layer`'s; float32.

    Raises:
        ConfigError: the layer is not in the model.
    """
    layers = means.shape[1]
    if layer is None:
        layer = residual_layer(means)
    if not 0 <= layer < layers:
        raise ConfigError("layer", got=layer, allowed=f"0 to {layers - 1}")
    return {layer: mean_difference(means)[layer].float()}


def random_neurons(
    like: Sequence[Neuron],
    layout: Layout,
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
    taken = _positions((neuron.place for neuron in like), layout) | _positions(universal, layout)
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
    layout: Layout,
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
    taken = _positions((neuron.place for neuron in like), layout) | _positions(universal, layout)
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
