"""What the statistics of `lm_eval_cna.analysis` do on simulated sweeps whose truth is known.

    python benchmarks/statistics_simulation.py [--sweeps 2000] [--seed 5] [--output results/simulation/statistics]

Coverage of the paired interval on a grid of rates, prompts and likeness of the two answers, by simulation and summed
exactly over all outcomes; false alarms of the null by control seed where seeds differ, beside a test that pools the
controls' prompts; Holm over the cells of a sweep; Page's trend test. Writes a .json with every point and a .md with
the tables. One core, a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from lm_eval_cna.analysis.dose import page_p
from lm_eval_cna.analysis.holm import holm
from lm_eval_cna.analysis.null import rank_p
from lm_eval_cna.analysis.paired import mcnemar_ps, tango_limits

ROOT = Path(__file__).resolve().parent.parent
RATES = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
EDGES = (0.0, 0.01, 0.02, 0.98, 0.99, 1.0)
LIKENESS = (0.0, 0.5, 0.9)
PROMPTS = (50, 100, 300)
SPREADS = (0.0, 0.05, 0.10)
LONGER = 10
ALPHA = 0.05
LOW, HIGH = 0.93, 0.97


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


def markdown(document: dict[str, Any]) -> str:
    """The tables for people."""
    tables, about = document["tables"], document["about"]
    lines = [
        "# The statistics on simulated sweeps",
        "",
        f"{about['sweeps']:,} simulated sweeps a point, seed {about['seed']}: `{about['command']}`.",
        f"{about['machine']}, {about['seconds']:.0f} s. Python {about['python']}, "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + ".",
        "",
        *_coverage_lines(tables["coverage"], about["sweeps"]),
        "## False alarms against the controls",
        "",
        "The circuit is one more random draw; 19 controls. Draws' true rates differ with the standard deviation given.",
        "`ours` is the rank test over control seeds; `pooled` takes the controls' prompts together; `guessed side` is",
        "the one-sided rank p on whichever side the effect lies; `outside` is any effect beyond the controls' range.",
        "A row is over four mean rates (0.1, 0.2, 0.3, 0.5) and two kinds of prompts (all alike, with ten times the",
        "sweeps, or some harder for every draw). Ours is at most 5 % by construction (the circuit's rank among",
        "exchangeable draws; `tests/unit/test_analysis_null.py` counts it out). The simulation has a standard error of",
        f"{_error(about['sweeps'])} where some prompts are harder and "
        f"{_error(LONGER * about['sweeps'])} where all are alike.",
        "",
        "| seeds differ by | prompts | ours, mean | ours, largest | pooled, range | pooled at rate 0.2 | guessed side, "
        "largest | outside, largest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for spread, prompts in product(SPREADS, PROMPTS):
        rows = [row for row in tables["null"] if (row["spread"], row["prompts"]) == (spread, prompts)]
        pooled = [row["pooled"] for row in rows]
        (usual,) = [row["pooled"] for row in rows if row["rate"] == 0.2 and row["alike"] == 0]
        lines.append(
            f"| {100 * spread:.0f} points | {prompts} | {_share(float(np.mean([row['ours'] for row in rows])))} | "
            f"{_largest(rows, 'ours')} | {_share(min(pooled))} to {_share(max(pooled))} | {_share(usual)} | "
            f"{_largest(rows, 'guessed')} | {_largest(rows, 'outside')} |"
        )
    lines += [
        "",
        "By number of controls (mean rate 0.2, seeds differ by 5 points, 100 prompts). With fewer than 19 the test",
        'cannot speak, and being outside the range is common: hence the wording "outside the range of R controls".',
        "",
        *_table(tables["controls"], {"controls": "controls"}, ("ours", "pooled", "guessed", "outside")),
        "",
        "Circuits that are special by so many points beyond a random draw's, found with 19 controls and 100 prompts",
        "(mean rate 0.2):",
        "",
        *_table(tables["special"], {"spread": "seeds differ by", "special": "special by"}, ("found",)),
        "",
        "## Holm",
        "",
        "Sweeps in which any cell without effect is called one: each p at 0.05, and Holm's.",
        "",
        *_table(tables["family"], {"cells": "cells", "rate": "rate", "prompts": "prompts"}, ("single", "holm")),
        "",
        "## Trend over seven multipliers",
        "",
        "Sweeps in which a trend is found: ours (exact, conditional on ties) and the textbook's normal approximation",
        "of Page's test, which assumes that nothing is tied. A rise of 0 is a false alarm.",
        "",
        *_table(tables["trend"], {"rate": "rate", "rise": "rise", "prompts": "prompts"}, ("ours", "textbook")),
        "",
    ]
    return "\n".join(lines)


def _coverage_lines(points: list[dict[str, Any]], sweeps: int) -> list[str]:
    grid = [point for point in points if point["where"] == "grid"]
    edges = [point for point in points if point["where"] == "edges"]
    low = [point for point in edges if point["exact"] < LOW]
    outside = [point for point in grid if not LOW <= point["exact"] <= HIGH]
    lines = [
        "## Coverage of the paired 95 % interval (Tango)",
        "",
        f"Rates of baseline and cell in {', '.join(map(str, RATES))} (each pair once: exchanging the two mirrors the",
        "interval); likeness 0 (independent answers), 0.5 and 0.9 of the way to the greatest agreement that the rates",
        f"allow. Simulation has a standard error of {_error(sweeps)}, so each point's coverage is",
        " also summed exactly over all outcomes; the count of points is by that sum.",
        "",
        "| prompts | points | within 93 to 97 % | mean | least | largest | simulated, least to largest | "
        "Newcombe's method 10, least to largest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for prompts in PROMPTS:
        lines.append(_coverage_line(str(prompts), [point for point in grid if point["prompts"] == prompts]))
    for least in (5, 10, 20):
        rows = [point for point in grid if point["discordant"] >= least]
        lines.append(_coverage_line(f"any, {least} or more expected to change", rows))
    lines += [
        "",
        f"Outside 93 to 97 %: {len(outside)} of {len(grid)} points"
        + (f", {sum(point['exact'] < LOW for point in outside)} of them below 93 %." if outside else "."),
        "",
    ]
    if outside:
        lines += [*_points(outside), ""]
    lines += [
        f"Elsewhere (one rate in {', '.join(map(str, EDGES))}):",
        "",
        "| prompts | points | within 93 to 97 % | mean | least | largest | simulated, least to largest | "
        "Newcombe's method 10, least to largest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_coverage_line(str(n), [point for point in edges if point["prompts"] == n]) for n in PROMPTS),
        "",
        f"Below 93 %, {len(low)} of {len(edges)} points:",
        "",
        *_points(low),
        "",
        "Where both rates are 0, or both 1, nothing can change, and the interval always holds the difference of 0.",
        "",
    ]
    alarms = [point["alarms"] for point in points if point["alarms"] is not None]
    lines += [f"The exact McNemar test calls an effect where there is none in at most {_share(max(alarms))}.", ""]
    return lines


def _points(points: list[dict[str, Any]]) -> list[str]:
    return [
        "| rates | likeness | prompts | expected to change | exact | simulated |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {p['before']} and {p['after']} | {p['likeness']} | {p['prompts']} | {p['discordant']:.1f} | "
            f"{_share(p['exact'])} | {_share(p['simulated'])} |"
            for p in sorted(points, key=lambda point: point["exact"])
        ),
    ]


def _error(sweeps: int) -> str:
    """Standard error of a share near 5 or 95 %."""
    return f"{100 * np.sqrt(0.0475 / sweeps):.2f} points"


def _coverage_line(name: str, rows: list[dict[str, Any]]) -> str:
    exact = [row["exact"] for row in rows]
    within = sum(LOW <= value <= HIGH for value in exact)
    ranges = [
        f"{_share(min(row[field] for row in rows))} to {_share(max(row[field] for row in rows))}"
        for field in ("simulated", "newcombe")
    ]
    shown = [name, len(rows), within, _share(float(np.mean(exact))), _share(min(exact)), _share(max(exact)), *ranges]
    return "| " + " | ".join(map(str, shown)) + " |"


def _table(rows: list[dict[str, Any]], settings: dict[str, str], shares: tuple[str, ...]) -> list[str]:
    heads = [*settings.values(), *shares]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return lines + [
        "| " + " | ".join([*(str(row[field]) for field in settings), *(_share(row[field]) for field in shares)]) + " |"
        for row in rows
    ]


def _largest(rows: list[dict[str, Any]], field: str) -> str:
    return _share(max(row[field] for row in rows))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Run all and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=2_000, help="simulated sweeps a point")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "simulation" / "statistics")
    given = parser.parse_args()
    start = time.perf_counter()
    tables = simulate(given.sweeps, given.seed, lambda text: print(text, file=sys.stderr))
    about = {
        "sweeps": given.sweeps,
        "seed": given.seed,
        "command": shlex.join(["python", "benchmarks/statistics_simulation.py", *sys.argv[1:]]),
        "machine": f"{_processor()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lm-eval-cna", "numpy", "scipy", "statsmodels")},
        "seconds": time.perf_counter() - start,
    }
    document = {"schema": "lm-eval-cna/statistics-simulation/1", "about": about, "tables": _rounded(tables)}
    _write(given.output.with_suffix(".json"), _compact(document))
    _write(given.output.with_suffix(".md"), markdown(document))
    print(markdown(document))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _compact(document: dict[str, Any]) -> str:
    """JSON with one point a line."""
    tables = ",\n".join(
        f" {json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
        for name, rows in document["tables"].items()
    )
    head = json.dumps({key: value for key, value in document.items() if key != "tables"}, indent=1)
    return f'{head[:-2]},\n "tables": {{\n{tables}\n }}\n}}\n'


if __name__ == "__main__":
    main()
