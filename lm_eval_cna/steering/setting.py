"""What to steer with and how strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors


@dataclass(frozen=True)
class Setting:
    """One point of the axis that all methods share."""

    intervention: Circuit | Vectors | None = None
    """Circuit or vectors; None is the baseline."""
    multiplier: float = 1.0
    """0 suppresses, 1 is the untouched model, 2 amplifies."""
    scale: float = 1.0
    """Factor of vectors, 1 for the published ones."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.multiplier) and math.isfinite(self.scale)):
            raise SteeringError("multiplier and scale", got=(self.multiplier, self.scale), allowed="finite numbers")

    @property
    def is_baseline(self) -> bool:
        """Whether this setting leaves the model untouched: m = 1 does, for every method."""
        return self.intervention is None or self.multiplier == 1.0

    @property
    def strength(self) -> float:
        """What vectors are multiplied with before they are added: (m - 1) * scale."""
        return (self.multiplier - 1.0) * self.scale
