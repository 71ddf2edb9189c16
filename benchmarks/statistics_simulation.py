"""What the statistics of `lm_eval_cna.analysis` do on simulated sweeps whose truth is known.

    python -m benchmarks.statistics_simulation [--sweeps 2000] [--seed 5] [--output results/simulation/statistics]

Coverage of the paired interval on a grid of rates, prompts and likeness of the two answers, by simulation and summed
exactly over all outcomes; false alarms of the null by control seed where seeds differ, beside a test that pools the
controls' prompts; Holm over the cells of a sweep; Page's trend test. Writes a .json with every point and a .md with
the tables. About half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import cpu
from benchmarks.statistics_sweeps import EDGES, LONGER, PROMPTS, RATES, SPREADS, simulate
from lm_eval_cna.files.atomic import write_whole

ROOT = Path(__file__).resolve().parent.parent
LOW, HIGH = 0.93, 0.97


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
        "exchangeable draws; `tests/statistics/test_null_distribution.py` counts it out). The simulation has a",
        f"standard error of {_error(about['sweeps'])} where some prompts are harder and "
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
        "command": shlex.join(["python", "-m", "benchmarks.statistics_simulation", *sys.argv[1:]]),
        "machine": f"{cpu()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lm-eval-cna", "numpy", "scipy", "statsmodels")},
        "seconds": time.perf_counter() - start,
    }
    document = {"schema": "lm-eval-cna/statistics-simulation/1", "about": about, "tables": _rounded(tables)}
    write_whole(given.output.with_suffix(".json"), _compact(document).encode())
    write_whole(given.output.with_suffix(".md"), markdown(document).encode())
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
