"""CAA in one layer's residual stream (Panickssery et al., arXiv 2312.06681)."""

from __future__ import annotations

import torch

from lm_eval_cna.discovery.measurement import Measurement
from lm_eval_cna.discovery.ranking import mean_difference
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.vectors import Vectors

LATEST_LAYER = 0.8  # Arditi et al., arXiv 2406.11717, take no direction from the last fifth of the layers


def find(measurement: Measurement, *, layer: int | None = None) -> Vectors:
    """The float32 vector mean(positive) - mean(negative) of the residual stream behind one layer.

    Args:
        measurement: read for "blocks".
        layer: the layer, from 0; by default `best_layer`'s.

    Raises:
        ConfigError: the layer is not in the model, or blocks were not read.
    """
    means = measurement.read("blocks")
    if layer is None:
        layer = best_layer(means)
    if not 0 <= layer < means.shape[1]:
        raise ConfigError("layer", got=layer, allowed=f"0 to {means.shape[1] - 1}")
    return measurement.vectors("caa-residual", {layer: mean_difference(means)[layer].float()}, layer=layer)


def best_layer(means: torch.Tensor) -> int:
    """The layer where the classes stand furthest apart for the size of the residual stream [2, layers, hidden].

    It has the largest |mean(positive) - mean(negative)| over the average of |mean(positive)| and |mean(negative)|,
    among the first 80 % of the layers (at least one); the earliest of equals.
    """
    latest = max(1, int(LATEST_LAYER * means.shape[1]))
    distance = mean_difference(means).norm(dim=-1)[:latest]
    scale = means.norm(dim=-1).mean(dim=0)[:latest].clamp(min=torch.finfo(means.dtype).tiny)
    return int((distance / scale).sort(descending=True, stable=True).indices[0])
