"""Class means to differences, and numbers to the neurons that have the largest. Pure tensors: no model, no prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.transformer.neurons import Neuron, NeuronLayout, Place, neuron_at

UNIVERSAL_SHARE = 0.8  # the paper's: on at least 80 % of diverse prompts


def mean_difference(means: torch.Tensor) -> torch.Tensor:
    """mean(positive) - mean(negative) of means [2, ...], positive first."""
    return means[0] - means[1]


def rank_neurons(
    delta: torch.Tensor,
    layout: NeuronLayout,
    k: int,
    *,
    excluded_layers: Collection[int] = (),
    universal: Iterable[Place] = (),
) -> tuple[Neuron, ...]:
    """The k neurons of largest |delta|, largest first; ties go by layer, expert and index.

    Deltas are [neurons], in the layout's order. Excluded layers and universal neurons are left out before the top k is
    taken.

    Raises:
        ConfigError: k is under 1 or above the number of neurons left, or a layer is not in the model.

    Example:
        >>> layout = NeuronLayout.dense(layers=2, width=2)
        >>> tuple(neuron.place for neuron in rank_neurons(torch.tensor([0.1, -3.0, 2.0, 0.0]), layout, k=2))
        ((0, 1), (1, 0))
    """
    layers = layout.num_layers
    outside = [layer for layer in excluded_layers if not 0 <= layer < layers]
    if outside:
        raise ConfigError("excluded layer", got=outside[0], allowed=f"0 to {layers - 1}")
    size = delta.abs().to(torch.float64)
    for layer in excluded_layers:
        span = layout.of_layer(layer)
        size[span.start : span.stop] = -1
    size[sorted(known_positions(universal, layout))] = -1
    left = int((size >= 0).sum())
    if not 1 <= k <= left:
        raise ConfigError("circuit size", got=k, allowed=f"1 to {left}, the neurons that are not left out")
    chosen = size.sort(descending=True, stable=True).indices[:k]
    values = delta[chosen].tolist()
    return tuple(neuron_at(layout.place(i), value) for i, value in zip(chosen.tolist(), values, strict=True))


def universal_neurons(
    counts: torch.Tensor, layout: NeuronLayout, prompts: int, share: float = UNIVERSAL_SHARE
) -> tuple[Place, ...]:
    """The neurons that `counts` [neurons] puts in the top on at least `share` of the prompts, in the layout's order."""
    needed = share * prompts - 1e-9  # 0.8 * 45 must not ask for 37
    return tuple(layout.place(position) for (position,) in (counts >= needed).nonzero().tolist())


def known_positions(places: Iterable[Place], layout: NeuronLayout) -> set[int]:
    """Positions of the neurons that the model has; a header from elsewhere may name others."""
    return {layout.position(place) for place in places if layout.has(place)}
