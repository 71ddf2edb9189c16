"""A cell against its controls: is the effect more than other neurons, chosen at random, would have?

The unit is the control seed, never the prompt. Two draws of random neurons differ by more than the prompts' chance, so
a test that pools the controls' prompts compares the circuit with an average draw as if it were all draws, and finds
circuits special that are one more random draw (`benchmarks.statistics_simulation` counts how often).

With R controls, p = (1 + controls at least as extreme) / (R + 1). If the circuit were one more random draw, its effect
and the R effects would be exchangeable, and p is at most alpha with probability at most alpha, whatever the effects'
distribution and however much seeds differ (rank test; Phipson and Smyth 2010, Statistical Applications in Genetics and
Molecular Biology 9:39). Nobody says before the run which way an effect goes, so the default is two-sided: extreme means
far from the median of all R + 1 effects, the circuit's own included. It has to be included: distances from the middle
of the controls alone are not exchangeable, and the circuit's would be the largest too often. Taking the observed
effect's own side for granted would false-alarm at twice the level.
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
    """The controls', in the order of their seeds."""
    low: float
    high: float
    """The null band, their range."""
    mean: float
    """Their mean."""
    side: Side
    """What counted as extreme."""
    p: float
    """Of the rank test."""
    least_p: float
    """The smallest p that so many controls can give."""

    @property
    def seeds(self) -> int:
        """How many controls."""
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
        """Whether the test says that the effect is more than other neurons have; never with fewer than 19 controls."""
        return self.testable and self.p <= ALPHA + _TIED


def against_controls(effect: float, controls: Sequence[float], *, side: Side = "two-sided") -> Null:
    """Rank a cell's effect among its controls' effects.

    Args:
        effect: the cell's.
        controls: the effects at the same multiplier and size, one a control seed.
        side: "less" or "greater" only for a direction stated before the run.

    Raises:
        ConfigError: there are no controls.
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
    """The p of many sweeps at once.

    Args:
        effects: any shape.
        controls: the same shape and one more axis, last, for the control seeds.
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
    """The smallest p that a number of controls can give: 0.05 takes 19."""
    return 1 / (controls + 1)
