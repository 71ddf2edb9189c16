"""What to steer with, and how strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors


@dataclass(frozen=True)
class Setting:
    """An intervention and its multiplier m: 0 suppresses, 1 is the untouched model, 2 amplifies.

    All methods share this axis: m multiplies a circuit's neurons, and vectors v are added as (m - 1) * scale * v.

    Raises:
        SteeringError: multiplier or scale is not a finite number.

    Example:
        >>> import torch
        >>> from lm_eval_cna.interventions.vectors import Vectors
        >>> from lm_eval_cna.steering import Setting
        >>> vectors = Vectors(method="caa", name="refusal", tensors={0: torch.ones(16)})
        >>> Setting(vectors, multiplier=0.0).strength
        -1.0
        >>> Setting(vectors, multiplier=1.0).is_baseline, Setting().is_baseline
        (True, True)
    """

    intervention: Circuit | Vectors | None = None
    """A circuit or vectors; None is the baseline."""
    multiplier: float = 1.0
    """m; any finite number."""
    scale: float = 1.0
    """Factor of vectors; circuits ignore it. 1 is the published strength."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.multiplier) and math.isfinite(self.scale)):
            raise SteeringError("multiplier and scale", got=(self.multiplier, self.scale), allowed="finite numbers")

    @property
    def is_baseline(self) -> bool:
        """Whether this setting leaves the model untouched, as m = 1 does for every method."""
        return self.intervention is None or self.multiplier == 1.0

    @property
    def strength(self) -> float:
        """The factor of vectors when they are added: (m - 1) * scale."""
        return (self.multiplier - 1.0) * self.scale
