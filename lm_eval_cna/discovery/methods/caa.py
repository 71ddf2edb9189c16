"""CAA as arXiv 2605.12290 runs it: in every layer, the class difference of what the MLP adds to the residual stream."""

from __future__ import annotations

from lm_eval_cna.discovery.measurement import Measurement
from lm_eval_cna.discovery.ranking import mean_difference
from lm_eval_cna.interventions.vectors import Vectors


def find(measurement: Measurement) -> Vectors:
    """One float32 vector a layer: mean(positive) - mean(negative) of the MLP's write.

    Raises:
        ConfigError: the measurement was not read for "writes".
    """
    return measurement.vectors("caa", dict(enumerate(mean_difference(measurement.read("writes")).float())))
