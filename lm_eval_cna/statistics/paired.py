"""A cell against the baseline, prompt by prompt.

Rates have the exact McNemar p (McNemar 1947, Psychometrika 12:153) and the score interval of Tango (1998, Statistics
in Medicine 17:891). They are two tests: near 0.05 the more cautious p can exceed 0.05 while the interval excludes 0.
Means have a sign-flip permutation p and a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.statistics.rates import LEVEL, RESAMPLES, SEED, Interval, mean_interval

Kind = Literal["rate", "mean"]
Document = int | str
Floats = NDArray[np.float64]
_HALVINGS = 60  # of an interval at most 2 wide: below the spacing of doubles


class Paired(AnalysisRecord):
    """A cell compared with the baseline on the prompts for which both have a value."""

    n: int
    """Prompts compared."""
    left_out: int
    """Prompts for which only one of the two has a value."""
    gained: int | None = None
    lost: int | None = None
    """For rates: prompts where only the cell, and where only the baseline, has the property."""
    effect: float
    """Mean of cell minus baseline, as a share (1 is 100 points)."""
    interval: Interval | None
    """Confidence interval of the effect; None for a mean of fewer than two prompts."""
    p: float
    """Two-sided p of McNemar's test for a rate, of the sign-flip test for a mean."""


def compare(
    cell: Mapping[Document, float], baseline: Mapping[Document, float], kind: Kind, *, level: float = LEVEL
) -> Paired | None:
    """Compare a cell with the baseline on their common documents; None if there are none.

    Raises:
        ConfigError: a rate has a value other than 0 and 1.

    Example:
        >>> found = compare({1: 0.0, 2: 0.0, 3: 1.0}, {1: 1.0, 2: 1.0, 3: 1.0}, "rate")
        >>> found.gained, found.lost, found.p
        (0, 2, 0.5)
    """
    common = [document for document in baseline if document in cell]
    if not common:
        return None
    ours = np.array([cell[document] for document in common])
    theirs = np.array([baseline[document] for document in common])
    left_out = len(cell) + len(baseline) - 2 * len(common)
    n, effect = len(common), float(np.mean(ours - theirs))
    if kind == "mean":
        differences = ours - theirs
        interval = mean_interval(differences.tolist(), level=level)
        return Paired(n=n, left_out=left_out, effect=effect, interval=interval, p=sign_flip_p(differences))
    if not np.isin(np.concatenate([ours, theirs]), (0.0, 1.0)).all():
        raise ConfigError("a rate has a value that is neither 0 nor 1", do="compare its means")
    gained, lost = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    return Paired(
        n=n,
        left_out=left_out,
        gained=gained,
        lost=lost,
        effect=(gained - lost) / n,
        interval=tango(gained, lost, n, level=level),
        p=mcnemar_p(gained, lost),
    )


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test; 1 if no prompt is discordant."""
    return float(mcnemar_ps(gained, lost))


def mcnemar_ps(gained: ArrayLike, lost: ArrayLike) -> Floats:
    """`mcnemar_p` for arrays of counts, broadcast against each other."""
    b, c = np.asarray(gained), np.asarray(lost)
    return np.asarray(np.minimum(1.0, 2.0 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5)))


@cache
def tango(gained: int, lost: int, n: int, *, level: float = LEVEL) -> Interval:
    """Tango's score interval of the difference of paired rates; it holds where no or every prompt is discordant, too.

    Only the cell has the property on `gained` of the `n` prompts, only the baseline on `lost`.

    Raises:
        ConfigError: counts are negative or more than `n`, or there is no prompt.
    """
    if min(gained, lost) < 0 or gained + lost > n or n == 0:
        raise ConfigError("discordant prompts", got=f"{gained} and {lost} of {n}", allowed="at most all of n >= 1")
    low, high = tango_limits(gained, lost, n, level=level)
    return Interval(low=float(low), high=float(high))


def tango_limits(gained: ArrayLike, lost: ArrayLike, n: ArrayLike, *, level: float = LEVEL) -> tuple[Floats, Floats]:
    """`tango` for arrays of counts, broadcast against each other; the counts are not checked.

    The score statistic falls from plus to minus infinity as the assumed difference goes from -1 to 1 and is 0 at the
    estimate, so each limit is found by halving the interval between the estimate and -1 or 1.
    """
    b, c, total = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (gained, lost, n)))
    z = float(stats.norm.ppf((1 + level) / 2))
    estimate = (b - c) / total
    limits = []
    for end, target in ((-1.0, z), (1.0, -z)):
        inside, outside = estimate.copy(), np.full_like(estimate, end)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            keep = np.abs(_score(middle, b, c, total)) <= abs(target)
            inside, outside = np.where(keep, middle, inside), np.where(keep, outside, middle)
        limits.append(np.where(estimate == end, end, inside))
    return limits[0], limits[1]


def _score(difference: Floats, b: Floats, c: Floats, n: Floats) -> Floats:
    """Tango's statistic T: (estimate - assumed difference) / standard error under the assumption.

    Under the assumption a share q of the prompts is lost and q + difference is gained. The maximum likelihood estimate
    of q is the larger root of 2n q^2 + B q + C (Tango 1998, section 3).
    """
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    away = b - c - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        # All prompts concordant and an assumed difference of 0: the assumption fits perfectly.
        return np.asarray(np.where(away == 0, 0.0, away / np.sqrt(np.maximum(variance, 0.0))))


def sign_flip_p(differences: Floats) -> float:
    """Two-sided permutation p of a mean paired difference.

    Under the null hypothesis the sign of each difference is random. The observed signs count as one of the
    permutations, so the least p is 1 / 10,000 and the test keeps its level (Phipson and Smyth 2010, Statistical
    Applications in Genetics and Molecular Biology 9:39). The seed is fixed.
    """
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0
    observed = abs(moved.sum()) * (1 - 1e-12)  # sums of the same numbers in another order are equal up to rounding
    rng, extreme, done = np.random.default_rng(SEED), 0, 0
    while done < RESAMPLES:
        batch = min(RESAMPLES - done, max(1, 4_000_000 // len(moved)))
        signs = rng.integers(0, 2, size=(batch, len(moved)), dtype=np.int8) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ moved) >= observed))
        done += batch
    return (1 + extreme) / (RESAMPLES + 1)
