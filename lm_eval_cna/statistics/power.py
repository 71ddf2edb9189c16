"""The power of the exact McNemar test: which effects a number of prompts can show.

The power is the summed probability of all outcomes whose exact p is at most alpha (Duffy 1984, Biometrics 40:1005); it
is computed, not simulated.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.statistics.paired import mcnemar_ps

ALPHA = 0.05
TARGET = 0.8


class Power(AnalysisRecord):
    """The smallest effect that a comparison would detect with a given power."""

    n: int
    """Prompts."""
    opposite: float
    """Share of prompts assumed to go against the effect."""
    alpha: float
    """Level of the test."""
    target: float
    """Required power."""
    effect: float | None
    """The smallest effect with that power, as a share of the prompts; None if no possible effect has it."""


def mcnemar_power(n: int, forward: float, opposite: float) -> float:
    """Probability that the exact McNemar test gives p <= 0.05 if these shares of n prompts change either way.

    Raises:
        ConfigError: a share is negative, their sum is above 1, or there is no prompt.
    """
    if n < 1 or min(forward, opposite) < 0 or forward + opposite > 1 + 1e-12:
        raise ConfigError("shares of changed prompts", got=f"{forward} and {opposite}", allowed="a sum of at most 1")
    discordant = min(1.0, forward + opposite)
    if discordant == 0:
        return 0.0
    counts = np.arange(n + 1)
    # The test rejects if at most `most` of the discordant prompts are in the minority; -1 if it never does.
    most = _critical(counts)
    share = forward / discordant
    reject = stats.binom.cdf(most, counts, share) + stats.binom.cdf(most, counts, 1 - share)
    return float(min(1.0, np.sum(stats.binom.pmf(counts, n, discordant) * reject)))


@cache
def smallest_effect(n: int, *, opposite: float = 0.0) -> Power:
    """The smallest effect that is seen four times in five, if a share of the prompts changes against it.

    Example:
        >>> round(smallest_effect(100).effect, 3)
        0.078
    """
    most = 1.0 - opposite
    found: float | None = None

    def lacking(effect: float) -> float:
        return mcnemar_power(n, min(most, effect + opposite), opposite) - TARGET

    if most > opposite and lacking(most - opposite) >= 0:
        # Power grows with the effect: one more prompt in its direction never raises p.
        found = float(optimize.brentq(lacking, 0.0, most - opposite, xtol=1e-6))
    return Power(n=n, opposite=opposite, alpha=ALPHA, target=TARGET, effect=found)


def _critical(discordant: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest minority counts whose p is at most alpha; -1 if there is none."""
    first = stats.binom.ppf(ALPHA / 2, discordant, 0.5)  # the least count whose one-sided p reaches alpha / 2
    return np.asarray(np.where(mcnemar_ps(first, discordant - first) <= ALPHA, first, first - 1))
