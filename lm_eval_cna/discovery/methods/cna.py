"""CNA (arXiv 2605.12290): the neurons whose mean activations differ most between the classes."""

from __future__ import annotations

from collections.abc import Collection

from lm_eval_cna.discovery.measurement import Measurement
from lm_eval_cna.discovery.ranking import mean_difference
from lm_eval_cna.interventions.circuit import Circuit


def find(
    measurement: Measurement,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    excluded_layers: Collection[int] = (),
) -> Circuit:
    """The neurons of largest |mean(positive) - mean(negative)|, largest first (size: `Measurement.circuit`).

    Raises:
        ConfigError: both sizes are given, a size or layer is out of range, or neurons were not read.
    """
    delta = mean_difference(measurement.read("neurons"))
    return measurement.circuit("cna", delta, fraction=fraction, top_k=top_k, excluded_layers=excluded_layers)
