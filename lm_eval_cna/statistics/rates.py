"""Confidence intervals of one cell: Wilson's for rates, the bootstrap for means.

Wilson's interval (Wilson 1927, JASA 22:209) keeps its coverage at rates near 0 and 1, where steering experiments end up
and where the bootstrap and the Wald interval fail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.records import AnalysisRecord

LEVEL = 0.95
RESAMPLES = 9_999
SEED = 20_605


class Interval(AnalysisRecord):
    """A confidence interval."""

    low: float
    high: float
    """The limits, in the unit of the estimate."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def turned(self) -> Interval:
        """The interval of the estimate with its sign turned: of a fall instead of a rise."""
        return Interval(low=-self.high, high=-self.low)


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a rate.

    Raises:
        ConfigError: there are no documents, or more successes than documents.

    Example:
        >>> interval = wilson(81, 263)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.2553, 0.3662)
    """
    if not 0 <= successes <= n or n == 0:
        raise ConfigError("an interval of a rate", got=f"{successes} of {n}", allowed="0 to n of n documents, n >= 1")
    found = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(low=float(found.low), high=float(found.high))


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Bootstrap interval of a mean, bias-corrected and accelerated (Efron 1987, JASA 82:171), with a fixed seed.

    Not for rates: at a true rate of 0.99 and 100 documents a bootstrap interval covers it only 64 % of the time.

    Returns:
        The interval; a single point if all values are equal; None with fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return None
    if np.ptp(sample) == 0:
        return Interval(low=float(sample[0]), high=float(sample[0]))
    found = _bootstrap(sample, "BCa", level)
    if not np.all(np.isfinite(found)):  # BCa's acceleration can be 0/0 on two or three distinct values
        found = _bootstrap(sample, "percentile", level)
    return Interval(low=found[0], high=found[1])


def _bootstrap(sample: np.ndarray, method: str, level: float) -> tuple[float, float]:
    with np.errstate(invalid="ignore", divide="ignore"):
        result = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=level,
            n_resamples=RESAMPLES,
            method=method,
            rng=np.random.default_rng(SEED),
            # Bounds the memory of one batch of resamples.
            batch=max(1, 4_000_000 // len(sample)),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
