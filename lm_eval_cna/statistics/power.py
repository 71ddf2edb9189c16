"""What a number of prompts could have shown: the power of the exact McNemar test, computed and not simulated.

Of n prompts, some go the way of the effect, some the other way, the rest stay. The power sums the chance of every pair
of counts whose exact p is at most alpha (Duffy 1984, Biometrics 40:1005, sums the same over discordant pairs).
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
    """The smallest effect that a comparison would have shown."""

    n: int
    """Prompts."""
    opposite: float
    """Share of prompts assumed to go against the effect."""
    alpha: float
    """Level of the test."""
    target: float
    """Power asked for."""
    effect: float | None
    """The smallest effect (share of prompts) with that power; None where no possible effect has it."""


def mcnemar_power(n: int, forward: float, opposite: float, *, alpha: float = ALPHA) -> float:
    """Chance that the exact McNemar test gives p <= alpha.

    Args:
        n: prompts.
        forward: share of prompts that change one way.
        opposite: share of prompts that change the other way.
        alpha: level of the test.

    Raises:
        ConfigError: the shares are no shares of one whole, or there is no prompt.
    """
    if n < 1 or min(forward, opposite) < 0 or forward + opposite > 1 + 1e-12:
        raise ConfigError("shares of changed prompts", got=f"{forward} and {opposite}", allowed="a sum of at most 1")
    discordant = min(1.0, forward + opposite)
    if discordant == 0:
        return 0.0
    counts = np.arange(n + 1)
    # Rejected if at most `most` of the discordant are in the minority; -1 where even 0 of them is not enough.
    most = _critical(counts, alpha)
    share = forward / discordant
    reject = stats.binom.cdf(most, counts, share) + stats.binom.cdf(most, counts, 1 - share)
    return float(min(1.0, np.sum(stats.binom.pmf(counts, n, discordant) * reject)))


@cache
def smallest_effect(
    n: int, *, opposite: float = 0.0, room: float = 1.0, alpha: float = ALPHA, target: float = TARGET
) -> Power:
    """The smallest effect with a given power.

    Args:
        n: prompts.
        opposite: share of prompts that go against the effect: 0 says that steering only ever changes answers one way,
            which is the best case.
        room: the largest share that can go the way of the effect: the baseline's rate, for an effect that lowers it.
        alpha: level of the test.
        target: power asked for.
    """
    most = min(room, 1.0 - opposite)
    found: float | None = None

    def lacking(effect: float) -> float:
        return mcnemar_power(n, min(most, effect + opposite), opposite, alpha=alpha) - target

    if most > opposite and lacking(most - opposite) >= 0:
        # Power grows with the effect: one more prompt going its way never raises p.
        found = float(optimize.brentq(lacking, 0.0, most - opposite, xtol=1e-6))
    return Power(n=n, opposite=opposite, alpha=alpha, target=target, effect=found)


def _critical(discordant: NDArray[np.int64], alpha: float) -> NDArray[np.float64]:
    """The largest minority counts whose p is at most alpha; -1 where none is."""
    first = stats.binom.ppf(alpha / 2, discordant, 0.5)  # the least count whose one-sided p reaches alpha / 2
    return np.asarray(np.where(mcnemar_ps(first, discordant - first) <= alpha, first, first - 1))
