"""Simulated sweeps whose truth is known, for `benchmarks.statistics_simulation`: coverage and false alarms."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from lm_eval_cna.statistics.dose_response import page_p
from lm_eval_cna.statistics.holm import holm
from lm_eval_cna.statistics.null_distribution import rank_p
from lm_eval_cna.statistics.paired import mcnemar_ps, tango_limits

RATES = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
EDGES = (0.0, 0.01, 0.02, 0.98, 0.99, 1.0)
LIKENESS = (0.0, 0.5, 0.9)
PROMPTS = (50, 100, 300)
SPREADS = (0.0, 0.05, 0.10)
LONGER = 10
ALPHA = 0.05


class Coverage(NamedTuple):
    """One point of the coverage grid.

    Attributes:
        before, after: true rates of baseline and cell.
        likeness: how far the two answers to a prompt go together: 0 independent, 1 as much as the rates allow.
        prompts: number of prompts.
        discordant: expected number of prompts that change.
        simulated: share of simulated sweeps whose Tango interval holds the true difference.
        exact: the same, summed over all outcomes with their chances.
        newcombe: share of simulated sweeps whose interval by Newcombe's method 10 does.
        alarms: chance that the exact McNemar test gives p <= 0.05; only where the rates are equal.
    """

    before: float
    after: float
    likeness: float
    prompts: int
    discordant: float
    simulated: float
    exact: float
    newcombe: float
    alarms: float | None


class Alarms(NamedTuple):
    """Shares of simulated sweeps in which a circuit that is one more random draw is called special.

    Attributes:
        ours: by the rank test over control seeds at 0.05.
        pooled: by a two-proportion test against all controls' prompts together at 0.05.
        guessed: by the one-sided rank p on the side on which the effect happens to lie.
        outside: by lying outside the controls' range.
    """

    ours: float
    pooled: float
    guessed: float
    outside: float


def joint(before: float, after: float, likeness: float) -> np.ndarray:
    """Chances of a prompt: both, only after (gained), only before (lost), neither."""
    both = before * after + likeness * (min(before, after) - before * after)
    chances = np.array([both, after - both, before - both, 1 - before - after + both])
    return np.clip(chances, 0, None) / np.clip(chances, 0, None).sum()


def coverage(
    rng: np.random.Generator, *, sweeps: int, before: float, after: float, likeness: float, prompts: int
) -> Coverage:
    """How often the interval of the difference holds the truth at one point."""
    chances, truth = joint(before, after, likeness), after - before
    low, high = _limits(prompts)
    holds = (low <= truth + 1e-12) & (high >= truth - 1e-12)
    drawn = rng.multinomial(prompts, chances, size=sweeps)
    gained, lost = drawn[:, 1], drawn[:, 2]
    newcombe_low, newcombe_high = newcombe(*drawn.T)
    b, c = np.indices(low.shape)
    possible = b + c <= prompts
    weights = np.zeros(low.shape)
    three = [chances[1], chances[2], chances[0] + chances[3]]
    counts = np.stack([b[possible], c[possible], prompts - b[possible] - c[possible]], axis=-1)
    weights[possible] = stats.multinomial.pmf(counts, prompts, three)
    alarms = float(np.sum(weights[mcnemar_ps(b, c) <= ALPHA])) if before == after else None
    return Coverage(
        before,
        after,
        likeness,
        prompts,
        discordant=float(prompts * (chances[1] + chances[2])),
        simulated=float(np.mean(holds[gained, lost])),
        exact=float(np.sum(weights[holds])),
        newcombe=float(np.mean((newcombe_low <= truth + 1e-12) & (newcombe_high >= truth - 1e-12))),
        alarms=alarms,
    )


_TABLES: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def _limits(prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Tango's limits for every (gained, lost); an interval that holds nothing where they are more than the prompts."""
    if prompts not in _TABLES:
        b, c = np.indices((prompts + 1, prompts + 1))
        possible = b + c <= prompts
        low, high = np.full(b.shape, 2.0), np.full(b.shape, -2.0)
        low[possible], high[possible] = tango_limits(b[possible], c[possible], prompts)
        _TABLES[prompts] = low, high
    return _TABLES[prompts]


def newcombe(both: Any, gained: Any, lost: Any, neither: Any) -> tuple[np.ndarray, np.ndarray]:
    """Method 10 of Newcombe (1998, Statistics in Medicine 17:2635): two Wilson intervals, squared and added."""
    a, b, c, d = (np.asarray(count, dtype=np.float64) for count in (both, gained, lost, neither))
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = _wilson(p1, n), _wilson(p2, n)
    product_ = (a + b) * (c + d) * (a + c) * (b + d)
    numerator = a * d - b * c
    corrected = np.where(numerator > n / 2, numerator - n / 2, np.where(numerator >= 0, 0.0, numerator))
    phi = np.divide(corrected, np.sqrt(product_), out=np.zeros_like(product_), where=product_ > 0)
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return p1 - p2 - np.sqrt(np.maximum(down, 0)), p1 - p2 + np.sqrt(np.maximum(up, 0))


def _wilson(p: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = float(stats.norm.ppf(0.975))
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def control_rates(
    rng: np.random.Generator, *, sweeps: int, rate: float, spread: float, prompts: int, draws: int, alike: float
) -> np.ndarray:
    """Measured rates of random draws, [sweeps, draws].

    Each draw's true rate is normal around `rate` with standard deviation `spread`, cut to 0.001..0.999; with `alike`
    above 0 some prompts are harder than others for every draw (a Gaussian copula with that correlation).
    """
    true = np.clip(rate + spread * rng.standard_normal((sweeps, draws)), 0.001, 0.999)
    if alike == 0:
        return rng.binomial(prompts, true) / prompts
    cut = stats.norm.ppf(true).astype(np.float32)
    difficulty = rng.standard_normal((sweeps, 1, prompts), dtype=np.float32) * np.float32(np.sqrt(alike))
    own = rng.standard_normal((sweeps, draws, prompts), dtype=np.float32) * np.float32(np.sqrt(1 - alike))
    return np.asarray(np.mean(difficulty + own < cut[..., None], axis=-1, dtype=np.float64))


def false_alarms(
    rng: np.random.Generator,
    *,
    sweeps: int,
    rate: float,
    spread: float,
    prompts: int,
    controls: int,
    alike: float = 0.0,
    special: float = 0.0,
) -> Alarms:
    """How often a circuit is called special that is one more random draw, moved by `special` points if asked."""
    rates = control_rates(
        rng, sweeps=sweeps, rate=rate, spread=spread, prompts=prompts, draws=controls + 1, alike=alike
    )
    circuit, others = np.clip(rates[:, 0] + special, 0, 1), rates[:, 1:]
    less, greater = rank_p(circuit, others, side="less"), rank_p(circuit, others, side="greater")
    together = others.mean(axis=1)
    share = (circuit + controls * together) / (controls + 1)
    error = np.sqrt(share * (1 - share) * (1 / prompts + 1 / (prompts * controls)))
    z = np.divide(np.abs(circuit - together), error, out=np.zeros_like(error), where=error > 0)
    return Alarms(
        ours=float(np.mean(rank_p(circuit, others) <= ALPHA + 1e-12)),
        pooled=float(np.mean(z > stats.norm.ppf(1 - ALPHA / 2))),
        guessed=float(np.mean(np.minimum(less, greater) <= ALPHA + 1e-12)),
        outside=float(np.mean((circuit < others.min(axis=1) - 1e-12) | (circuit > others.max(axis=1) + 1e-12))),
    )


def family_alarms(rng: np.random.Generator, *, sweeps: int, cells: int, rate: float, prompts: int) -> dict[str, float]:
    """Sweeps in which any of several cells without effect is called an effect, with and without Holm."""
    chances = joint(rate, rate, 0.5)
    drawn = rng.multinomial(prompts, chances, size=(sweeps, cells))
    ps = mcnemar_ps(drawn[..., 1], drawn[..., 2])
    adjusted = [min(holm(dict(enumerate(row.tolist()))).values()) for row in ps]
    return {"single": float(np.mean(ps.min(axis=1) <= ALPHA)), "holm": float(np.mean(np.array(adjusted) <= ALPHA))}


def trend_alarms(
    rng: np.random.Generator, *, sweeps: int, rate: float, rise: float, prompts: int, alike: float = 0.5
) -> dict[str, float]:
    """Sweeps of seven multipliers in which a trend is found; `rise` is the true change of the rate from end to end."""
    cut = stats.norm.ppf(rate + rise * np.linspace(-0.5, 0.5, 7))
    found = {"ours": 0, "textbook": 0}
    for _ in range(sweeps):
        difficulty = rng.standard_normal((prompts, 1)) * np.sqrt(alike)
        rows = (difficulty + rng.standard_normal((prompts, 7)) * np.sqrt(1 - alike) < cut).astype(np.float64)
        found["ours"] += page_p(rows) <= ALPHA
        # Page's own variance, which assumes that nothing is tied; two-sided.
        ranks = stats.rankdata(rows, axis=1)
        mean, variance = prompts * 7 * 64 / 4, prompts * 49 * 8 * 48 / 144
        found["textbook"] += abs((ranks @ np.arange(1, 8)).sum() - mean) / np.sqrt(variance) > 1.959964
    return {name: count / sweeps for name, count in found.items()}


def simulate(sweeps: int, seed: int, tell: Any = lambda text: None) -> dict[str, Any]:
    """Every table; the order of the points is part of what the seed fixes."""
    rng = np.random.default_rng(seed)
    points = []
    for name, pairs in (
        ("grid", [(x, y) for x, y in product(RATES, RATES) if x <= y]),
        ("edges", [(x, y) for x, y in product(EDGES, (*EDGES, 0.5)) if x <= y or y == 0.5]),
    ):
        for (before, after), likeness, prompts in product(pairs, LIKENESS, PROMPTS):
            found = coverage(rng, sweeps=sweeps, before=before, after=after, likeness=likeness, prompts=prompts)
            points.append({"where": name, **found._asdict()})
        tell(f"coverage, {name}: {len(points)} points")
    null = []
    for alike, prompts, rate, spread in product((0.0, 0.5), PROMPTS, (0.1, 0.2, 0.3, 0.5), SPREADS):
        asked = {"rate": rate, "spread": spread, "prompts": prompts, "controls": 19, "alike": alike}
        # Without prompts in common a draw is one binomial number, so ten times the sweeps cost little.
        times = LONGER if alike == 0 else 1
        null.append(asked | {"sweeps": times * sweeps} | false_alarms(rng, sweeps=times * sweeps, **asked)._asdict())
    tell(f"null: {len(null)} points")
    counts = []
    for controls in (3, 5, 9, 18, 19, 39, 99):
        asked = {"rate": 0.2, "spread": 0.05, "prompts": 100, "controls": controls}
        counts.append(asked | false_alarms(rng, sweeps=sweeps, **asked)._asdict())
    special = []
    for spread, moved in product(SPREADS, (0.1, 0.2, 0.4, 0.6)):
        asked = {"rate": 0.2, "spread": spread, "prompts": 100, "controls": 19, "special": moved}
        special.append({**asked, "found": false_alarms(rng, sweeps=sweeps, **asked).ours})
    family = []
    for cells, rate, prompts in product((6, 12), (0.1, 0.5), (100, 300)):
        asked = {"cells": cells, "rate": rate, "prompts": prompts}
        family.append(asked | family_alarms(rng, sweeps=sweeps, **asked))
    tell("Holm done")
    trends = []
    for rate, rise, prompts in product((0.2, 0.5), (0.0, 0.1, 0.2), (50, 100)):
        asked = {"rate": rate, "rise": rise, "prompts": prompts}
        trends.append(asked | trend_alarms(rng, sweeps=sweeps, **asked))
    tell("trends done")
    return {
        "coverage": points,
        "null": null,
        "controls": counts,
        "special": special,
        "family": family,
        "trend": trends,
    }
