"""Statistics to neurons and vectors. Pure tensors: this module knows no model, no hook and no prompt.

Floor 2. Formulas: CNA is arXiv 2605.12290, CAA as that paper runs it (the mean difference of what every MLP writes);
the single-layer residual vector is Panickssery et al., arXiv 2312.06681.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.intervention import Neuron

THIRDS = ("bottom", "middle", "top")
UNIVERSAL_SHARE = 0.8  # the paper's: on at least 80 % of diverse prompts
MATCH_POOL = 20  # neurons among which an activation-matched control draws
LATEST_LAYER = 0.8  # Arditi et al., arXiv 2406.11717, take no direction from the last fifth of the layers

Pair = tuple[int, int]


def circuit_size(fraction: float, layers: int, width: int) -> int:
    """How many neurons a circuit has: round(fraction * layers * width), at least 1.

    Raises:
        ConfigError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError("fraction of the model's neurons", got=fraction, allowed="above 0, up to 1")
    return max(1, round(fraction * layers * width))


def mean_difference(means: torch.Tensor) -> torch.Tensor:
    """mean(positive) - mean(negative) of means [2, ...], positive first."""
    return means[0] - means[1]


def rank_neurons(
    delta: torch.Tensor, k: int, *, excluded_layers: Collection[int] = (), universal: Iterable[Pair] = ()
) -> tuple[Neuron, ...]:
    """The k neurons of largest |delta|, largest first, ties by (layer, index).

    Args:
        delta: a value for every neuron, [layers, width].
        k: the size of the circuit.
        excluded_layers: layers to leave out.
        universal: neurons (layer, index) to leave out, before the top k is taken.

    Raises:
        ConfigError: k is under 1 or more than there are neurons left, or a layer is not in the model.
    """
    layers, width = delta.shape
    outside = [layer for layer in excluded_layers if not 0 <= layer < layers]
    if outside:
        raise ConfigError("excluded layer", got=outside[0], allowed=f"0 to {layers - 1}")
    size = delta.abs().to(torch.float64)
    size[sorted(set(excluded_layers))] = -1
    for layer, index in universal:
        size[layer, index] = -1
    size = size.flatten()
    left = int((size >= 0).sum())
    if not 1 <= k <= left:
        raise ConfigError("circuit size", got=k, allowed=f"1 to {left}, the neurons that are not left out")
    chosen = size.sort(descending=True, stable=True).indices[:k]
    values = delta.flatten()[chosen].tolist()
    return tuple(Neuron(i // width, i % width, value) for i, value in zip(chosen.tolist(), values, strict=True))


def universal_neurons(counts: torch.Tensor, prompts: int, share: float = UNIVERSAL_SHARE) -> tuple[Pair, ...]:
    """The neurons that are in the top on at least `share` of the prompts, in (layer, index) order.

    Args:
        counts: prompts on which each neuron is in the top, [layers, width].
        prompts: the number of prompts.
        share: the least share of them.
    """
    needed = share * prompts - 1e-9  # 0.8 * 45 must not ask for 37
    return tuple((layer, index) for layer, index in (counts >= needed).nonzero().tolist())


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
    width: int,
    *,
    seed: int,
    universal: Iterable[Pair] = (),
    magnitudes: torch.Tensor | None = None,
) -> tuple[Neuron, ...]:
    """Draw a control circuit: its i-th neuron lies in the layer of the i-th of `like`.

    Neither a neuron of `like` nor a universal one is drawn, and none twice. A draw looks only at what was drawn before
    it, so a prefix of the control is the control of a prefix that leaves the whole circuit alone. Draws come from
    `random.Random`, whose sequence Python keeps across versions.

    Args:
        like: the circuit to match.
        width: neurons of a layer.
        seed: one control a seed.
        universal: neurons (layer, index) that are not drawn.
        magnitudes: mean |activation| of every neuron [layers, width]; where given, a draw is among the `MATCH_POOL`
            remaining neurons of the layer whose mean |activation| is nearest to that of the matched neuron. Without, it
            is uniform in the layer.

    Raises:
        ConfigError: a layer has too few neurons left.
    """
    taken = {(layer, index) for layer, index, _ in like} | set(universal)
    left = {
        layer: [index for index in range(width) if (layer, index) not in taken] for layer in {n.layer for n in like}
    }
    for layer, free in left.items():
        wanted = sum(neuron.layer == layer for neuron in like)
        if wanted > len(free):
            raise ConfigError(
                f"layer {layer} has {len(free)} neurons that are neither in the circuit nor universal",
                got=f"{wanted} to draw",
                do="match a smaller circuit",
            )
    generator = random.Random(f"lm-eval-cna random {seed}")
    drawn = []
    for layer, index, _ in like:
        free = left[layer]
        if magnitudes is None:
            position = int(generator.random() * len(free))
        else:
            values = magnitudes[layer]
            near = (values[free] - values[index]).abs().sort(stable=True).indices[:MATCH_POOL]
            position = int(near[int(generator.random() * len(near))])
        drawn.append(Neuron(layer, free.pop(position)))
    return tuple(drawn)


def third_of_layers(layers: int, third: str) -> range:
    """The layers of the bottom, middle or top third: as even a split as whole layers allow, the same from both ends.

    Of 16 layers the thirds have 5, 6 and 5, of 28 they have 9, 10 and 9.

    Raises:
        ConfigError: no such third, or the model is too shallow to have one.
    """
    if third not in THIRDS:
        raise ConfigError("third of the layers", got=third, allowed=", ".join(THIRDS))
    ends = [round(part * layers / 3) for part in range(4)]
    found = range(*ends[(at := THIRDS.index(third)) : at + 2])
    if not found:
        raise ConfigError(f"a model of {layers} layers has no {third} third", do="match controls by layer")
    return found


def random_neurons_of(
    like: Sequence[Neuron],
    width: int,
    layers: Collection[int],
    *,
    seed: int,
    universal: Iterable[Pair] = (),
) -> tuple[Neuron, ...]:
    """Draw a control circuit as large as `like`, uniformly among the neurons of some layers.

    Neither a neuron of `like` nor a universal one is drawn, and none twice. As with `random_neurons`, a prefix of the
    control is the control of a prefix that leaves the whole circuit alone.

    Args:
        like: the circuit whose size is matched.
        width: neurons of a layer.
        layers: the layers to draw from.
        seed: one control a seed and set of layers.
        universal: neurons (layer, index) that are not drawn.

    Raises:
        ConfigError: the layers have too few neurons left.
    """
    taken = {(layer, index) for layer, index, _ in like} | set(universal)
    free = [(layer, index) for layer in sorted(layers) for index in range(width) if (layer, index) not in taken]
    if len(like) > len(free):
        raise ConfigError(
            f"the {len(layers)} layers to draw from have {len(free)} neurons that are neither in the circuit nor "
            "universal",
            got=f"{len(like)} to draw",
            do="match a smaller circuit, or by layer",
        )
    generator = random.Random(f"lm-eval-cna random {seed} of layers {sorted(layers)}")
    # As in `random_neurons`, `random()` alone: Python keeps its sequence across versions, and not `sample`'s.
    return tuple(Neuron(*free.pop(int(generator.random() * len(free)))) for _ in like)


def random_vectors(like: Mapping[int, torch.Tensor], *, seed: int) -> dict[int, torch.Tensor]:
    """Draw control vectors: in each layer a direction uniform on the sphere, of the norm of `like`'s; float32."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for layer in sorted(like):
        direction = torch.randn(like[layer].shape, generator=generator, dtype=torch.float64)
        norm = like[layer].double().norm().cpu()
        drawn[layer] = (direction * (norm / direction.norm())).float()
    return drawn
