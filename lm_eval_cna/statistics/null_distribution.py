"""A cell against its controls: is the effect larger than that of neurons chosen at random?

A rank test over control seeds (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology
9:39). The unit is the seed, not the prompt: draws of random neurons differ by more than prompts do, so pooling the
controls' prompts would call too many circuits special (`benchmarks.statistics_simulation` counts how often).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.records import AnalysisRecord

Side = Literal["two-sided", "less", "greater"]
ALPHA = 0.05
#: Effects this close are tied: means of the same values summed in another order.
_TIED = 1e-9


class Null(AnalysisRecord):
    """A cell's effect among its controls' effects, all as shares (1 is 100 points)."""

    effects: tuple[float, ...]
    """The effects of the controls, in the order of their seeds."""
    low: float
    high: float
    """The null band: the range of the controls' effects."""
    mean: float
    """Mean of the controls' effects."""
    side: Side
    """What counted as extreme."""
    p: float
    """p of the rank test."""
    least_p: float
    """The smallest p that this number of controls can give."""

    @property
    def seeds(self) -> int:
        """Number of controls."""
        return len(self.effects)

    @property
    def testable(self) -> bool:
        """Whether there are enough controls for the test to reach 0.05: 19 or more."""
        return self.least_p <= ALPHA + _TIED

    def outside(self, effect: float) -> bool:
        """Whether an effect is outside the controls' range."""
        return effect < self.low - _TIED or effect > self.high + _TIED

    @property
    def beyond(self) -> bool:
        """Whether the test finds the effect beyond the controls; never with fewer than 19 controls."""
        return self.testable and self.p <= ALPHA + _TIED


def against_controls(effect: float, controls: Sequence[float], *, side: Side = "two-sided") -> Null:
    """Rank a cell's effect among its controls' effects.

    Args:
        effect: the effect of the cell.
        controls: effects at the same multiplier and size, one per control seed.
        side: "less" or "greater" only for a direction stated before the run.

    Raises:
        ConfigError: there are no controls.

    Example:
        >>> null = against_controls(-0.6, [0.0] * 18 + [0.02])
        >>> null.p, null.beyond
        (0.05, True)
    """
    if not controls:
        raise ConfigError("a null without controls", do="run the sweep with --random")
    effects = np.asarray(controls, dtype=np.float64)
    return Null(
        effects=tuple(float(value) for value in effects),
        low=float(effects.min()),
        high=float(effects.max()),
        mean=float(effects.mean()),
        side=side,
        p=float(rank_p(effect, effects, side=side)),
        least_p=least_p(len(effects)),
    )


def rank_p(effects: ArrayLike, controls: ArrayLike, *, side: Side = "two-sided") -> NDArray[np.float64]:
    """The rank test, p = (1 + controls at least as extreme) / (R + 1) with R controls, for many sweeps at once.

    If the circuit were one more random draw, its effect and the R effects would be exchangeable, so p is at most alpha
    with probability at most alpha, whatever their distribution. Two-sided, extreme means far from the median of all
    R + 1 effects. The cell's own effect is among them, since distances from the median of the controls alone are not
    exchangeable.

    Args:
        effects: of the cells, any shape.
        controls: the same shape and a last axis for the control seeds.
        side: what is extreme.
    """
    own, others = np.asarray(effects, dtype=np.float64)[..., None], np.asarray(controls, dtype=np.float64)
    if side == "two-sided":
        middle = np.median(np.concatenate([own, others], axis=-1), axis=-1, keepdims=True)
        own, others = np.abs(own - middle), np.abs(others - middle)
    elif side == "less":
        own, others = -own, -others
    as_extreme = np.sum(others >= own - _TIED, axis=-1)
    return np.asarray((1 + as_extreme) / (others.shape[-1] + 1))


def least_p(controls: int) -> float:
    """The smallest p that a number of controls can give; 19 controls are needed for 0.05."""
    return 1 / (controls + 1)
