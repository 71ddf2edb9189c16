"""A cell against the baseline, prompt by prompt: exact McNemar p and Tango's score interval of the difference.

Of n prompts, `gained` have the property only in the cell and `lost` only in the baseline; the effect is
(gained - lost) / n. The p value is McNemar's, exact, conditional on the discordant prompts (McNemar 1947,
Psychometrika 12:153). The interval inverts the score test of Tango (1998, Statistics in Medicine 17:891), which also
works where no prompt, or every prompt, is discordant. The two are not the same test: near 0.05 the exact p, which is
the more cautious one, can stay above 0.05 while the interval leaves 0 out.

For values that are not 0 or 1: the mean difference, its bootstrap interval, and the p of a sign-flip permutation test.
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
    """A cell compared with the baseline on the prompts that both have a value for."""

    n: int
    """Prompts compared."""
    left_out: int
    """Prompts that only one of the two has a value for."""
    gained: int | None = None
    lost: int | None = None
    """Rates only: prompts with the property only in the cell, only in the baseline."""
    effect: float
    """Mean of cell minus baseline, as a share (1 is 100 points)."""
    interval: Interval | None
    """Of the effect; None for means of fewer than two prompts."""
    p: float
    """Two-sided."""


def compare(
    cell: Mapping[Document, float], baseline: Mapping[Document, float], kind: Kind, *, level: float = LEVEL
) -> Paired | None:
    """Compare a cell with the baseline on their common documents; None where they have none.

    Raises:
        ConfigError: a rate has a value other than 0 and 1.
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
    """Exact two-sided p of McNemar's test; 1 where no prompt is discordant."""
    return float(mcnemar_ps(gained, lost))


def mcnemar_ps(gained: ArrayLike, lost: ArrayLike) -> Floats:
    """The same for arrays of counts, broadcast against each other."""
    b, c = np.asarray(gained), np.asarray(lost)
    return np.asarray(np.minimum(1.0, 2.0 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5)))


@cache
def tango(gained: int, lost: int, n: int, *, level: float = LEVEL) -> Interval:
    """Tango's score interval of the difference of paired rates.

    Args:
        gained: prompts with the property only in the cell.
        lost: prompts with it only in the baseline.
        n: all prompts.
        level: confidence level.

    Raises:
        ConfigError: counts are negative or more than `n`, or there is no prompt.
    """
    if min(gained, lost) < 0 or gained + lost > n or n == 0:
        raise ConfigError("discordant prompts", got=f"{gained} and {lost} of {n}", allowed="at most all of n >= 1")
    low, high = tango_limits(gained, lost, n, level=level)
    return Interval(low=float(low), high=float(high))


def tango_limits(gained: ArrayLike, lost: ArrayLike, n: ArrayLike, *, level: float = LEVEL) -> tuple[Floats, Floats]:
    """The limits for arrays of counts, broadcast against each other; counts are not checked.

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
    """Tango's statistic T: the estimate minus an assumed difference over the standard error under that assumption.

    Under it the share of prompts that lose is q and of those that gain q + difference; q is its maximum likelihood
    estimate, the larger root of 2n q^2 + B q + C (Tango 1998, section 3).
    """
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    away = b - c - n * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        # No variance and no distance (all prompts concordant, difference 0): the assumption fits perfectly.
        return np.asarray(np.where(away == 0, 0.0, away / np.sqrt(np.maximum(variance, 0.0))))


def sign_flip_p(differences: Floats, *, seed: int = SEED) -> float:
    """Two-sided permutation p of a mean paired difference.

    Under the null each difference is as likely with its sign turned. Seeded; the observed arrangement counts as one of
    the permutations (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39), so the
    least p is 1 / 10,000, and the test keeps its level.
    """
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0
    observed = abs(moved.sum()) * (1 - 1e-12)  # sums of the same numbers in another order are equal up to rounding
    rng, extreme, done = np.random.default_rng(seed), 0, 0
    while done < RESAMPLES:
        batch = min(RESAMPLES - done, max(1, 4_000_000 // len(moved)))
        signs = rng.integers(0, 2, size=(batch, len(moved)), dtype=np.int8) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ moved) >= observed))
        done += batch
    return (1 + extreme) / (RESAMPLES + 1)
