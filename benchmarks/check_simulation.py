"""How often `lm-eval-cna check` fails by noise, and how often it finds what was lost, on simulated pairs of runs.

    python -m benchmarks.check_simulation [--runs 2000] [--seed 5] [--output results/simulation/check]

Baseline and run ask the same prompts. A prompt's firmness is uniform; the untouched model refuses where it is below its
rate, and so does each steered cell below the cell's own. From one run to the next a share of all answers is drawn
again (0: greedy decoding on the same machine; 1: the two runs have only the rates in common). Controls always have
other seeds: their rates differ by a normal deviate for each seed. Every pair goes through the code of the check, with
the shipped tolerances: effects on a refusal and a benign task at m = 0 and 2, quality, degenerate texts, a capability
task and the controls, so a check has 20 comparisons. A detection is a check that fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import cpu
from lm_eval_cna.analysis.baseline import Baseline, Tolerances, baseline_of
from lm_eval_cna.analysis.outcomes import Outcomes
from lm_eval_cna.analysis.protocol import Protocol
from lm_eval_cna.analysis.regression import Finding, compare_with
from lm_eval_cna.files.atomic import write_whole
from lm_eval_cna.results.cells import BASELINE, Cell

ROOT = Path(__file__).resolve().parent.parent
CONTROLS, QUESTIONS = 19, 200
REDRAWN = (0.0, 0.1, 0.2, 1.0)
#: Refusal rates of the untouched model and of the model with the circuit ablated.
RATES = ((0.95, 0.05), (0.92, 0.3), (0.9, 0.5), (0.6, 0.3))
PROTOCOL = Protocol(
    model="simulated",
    architecture="none",
    weights=None,
    methods=("cna", "random"),
    sizes=(),
    multipliers=(0.0, 1.0, 2.0),
    random=CONTROLS,
    control_multipliers=(0.0, 2.0),
    match="layer",
    scale=1.0,
    limit=None,
    tasks=(),
    questions={},
    circuit={},
    judge=None,
    versions={},
)
Draws = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class World:
    """What is true of the runs.

    Attributes:
        prompts: of each of the two refusal tasks.
        untouched, ablated: refusal rates of the baseline.
        redrawn: share of the answers that are drawn again in the run.
        spread: standard deviation of the controls' true rates.
        loss: by how much more the ablated model refuses in the run.
        quality: by how much its mean quality falls.
        capability: by how much its accuracy falls.
        replaced: whether the circuit of the run is one more random draw.
    """

    prompts: int = 100
    untouched: float = 0.92
    ablated: float = 0.3
    redrawn: float = 0.1
    spread: float = 0.05
    loss: float = 0.0
    quality: float = 0.0
    capability: float = 0.0
    replaced: bool = False


def failures(world: World, runs: int, seed: int) -> dict[str, float]:
    """Share of checks that fail, and by which kind of comparison; a fresh baseline for every check."""
    rng = np.random.default_rng([seed, *np.frombuffer(repr(world).encode(), dtype=np.uint8)])
    found = {"failed": 0, **{f"by_{what}": 0 for what in ("effect", "quality", "degenerate", "capability", "controls")}}
    for _ in range(runs):
        findings = one_check(world, rng)
        failed = {finding.what for finding in findings if not finding.passed}
        found["failed"] += bool(failed)
        for what in failed:
            found[f"by_{what}"] += 1
    return {name: count / runs for name, count in found.items()}


def one_check(world: World, rng: np.random.Generator) -> tuple[Finding, ...]:
    """A baseline from one run, and the check of the next."""
    draws = _draws(world, rng)
    quiet = replace(world, loss=0.0, quality=0.0, capability=0.0, replaced=False)
    baseline: Baseline = baseline_of(_outcomes(quiet, draws, rng), PROTOCOL, run="first", tolerances=Tolerances())
    again = _draws(world, rng)
    # An answer is drawn again with its firmness; numbers of the quality are drawn as often as the text they belong to.
    kept = {name: rng.random(values.shape) >= world.redrawn for name, values in draws.items()}
    second = {name: np.where(kept[name], draws[name], again[name]) for name in draws}
    return compare_with(baseline, _outcomes(world, second, rng))


def _draws(world: World, rng: np.random.Generator) -> Draws:
    found = {"acc": rng.random(QUESTIONS)}
    for task in ("harmful", "benign"):
        shared = rng.random(world.prompts)  # one firmness a prompt, so that cells agree on easy prompts
        for cell in ("baseline", "cna-m0", "cna-m2"):
            found[f"{task} {cell}"] = shared
            found[f"{task} {cell} text"] = rng.random(world.prompts)
    return found


def _outcomes(world: World, draws: Draws, rng: np.random.Generator) -> Outcomes:
    cells = {cell.key: cell for cell in (BASELINE, Cell("cna", 0.0), Cell("cna", 2.0))}
    values: dict[tuple[str, str, str], dict[int | str, float]] = {}

    def put(cell: str, task: str, metric: str, numbers: NDArray[Any]) -> None:
        values[cell, task, metric] = dict(enumerate(numbers.astype(float).tolist()))

    ablated = world.ablated + world.loss
    if world.replaced:
        ablated = float(np.clip(world.untouched + world.spread * rng.standard_normal(), 0, 1))
    rates = {
        "harmful": {"baseline": world.untouched, "cna-m0": ablated, "cna-m2": min(1.0, world.untouched + 0.03)},
        "benign": {"baseline": 0.05, "cna-m0": 0.03, "cna-m2": 0.1},
    }
    for task, by_cell in rates.items():
        for cell, rate in by_cell.items():
            put(cell, task, "refusal_rate", draws[f"{task} {cell}"] < rate)
            # One answer in ten repeats itself a little; what is lost is lost by the ablated model's texts alike.
            text = draws[f"{task} {cell} text"]
            fall = world.quality if cell == "cna-m0" else 0.0
            put(cell, task, "quality", 1 - fall - np.where(text < 0.1, 3 * text, 0.0))
            put(cell, task, "degenerate_rate", text < 0.02)
    for cell in cells:
        put(cell, "knowledge", "acc", draws["acc"] < 0.7 - (world.capability if cell == "cna-m0" else 0.0))
    for seed, multiplier in product(range(CONTROLS), (0.0, 2.0)):
        control = Cell("random", multiplier, seed)
        cells[control.key] = control
        for task, by_cell in rates.items():
            rate = by_cell["baseline"] + world.spread * rng.standard_normal()
            put(control.key, task, "refusal_rate", rng.random(world.prompts) < rate)
    return Outcomes(cells, values)


def grids() -> dict[str, list[World]]:
    """The tables, each a list of worlds."""
    pairs = [World(untouched=before, ablated=after) for before, after in RATES]
    return {
        "alarms": [
            *(replace(world, redrawn=redrawn) for world in pairs for redrawn in REDRAWN if redrawn),
            *(replace(world, redrawn=0.2, prompts=prompts) for prompts in (50, 300) for world in pairs[1::2]),
        ],
        "seeds": [World(ablated=0.3, spread=0.0), World(ablated=0.3, spread=0.1), World(ablated=0.5, spread=0.1)],
        "loss": [replace(world, loss=0.2, redrawn=redrawn) for world in pairs for redrawn in REDRAWN],
        "other": [
            World(loss=0.1),
            World(quality=0.1),
            World(capability=0.2),
            World(replaced=True),
        ],
    }


def simulate(runs: int, seed: int, *, jobs: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Every world of every table with the shares of checks that fail."""
    named = [(name, world) for name, worlds in grids().items() for world in worlds]
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in grids()}
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(failures, [world for _, world in named], repeat(runs), repeat(seed))
        for (name, world), shares in zip(named, found, strict=True):
            tables[name].append({**asdict(world), **shares})
            print(name, world, shares["failed"], file=sys.stderr)
    return tables


def markdown(document: dict[str, Any]) -> str:
    """The tables for people."""
    about, tables = document["about"], document["tables"]
    error = 100 * (0.02 * 0.98 / about["runs"]) ** 0.5
    alarms = [row["failed"] for row in (*tables["alarms"], *tables["seeds"])]
    found = [row["failed"] for row in tables["loss"] if row["redrawn"] <= 0.1]
    lines = [
        "# The check on simulated pairs of runs",
        "",
        f"{about['runs']:,} pairs a point, seed {about['seed']}: `{about['command']}`; {about['seconds']:.0f} s on",
        f"{about['machine']}. Shipped tolerances: {', '.join(f'{k} {v:g}' for k, v in about['tolerances'].items())}.",
        "What is simulated: `benchmarks/check_simulation.py`, first lines.",
        "",
        f"False alarms: at most {_share(max(alarms))} of the checks (standard error of 2 %: {error:.2f} points).",
        "A loss of 20 points of effect at 100 prompts, up to a tenth of the answers drawn again: found in at least",
        f"{_share(min(found))} of the checks.",
        "",
        "## Nothing was lost: checks that fail",
        "",
        *_grid(tables["alarms"]),
        "",
        "Controls whose seeds differ more or less (100 prompts, a tenth of the answers drawn again):",
        "",
        "| untouched, ablated | seeds differ by | checks that fail | by the controls |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['untouched']:g}, {row['ablated']:g} | {100 * row['spread']:.0f} points "
            f"| {_share(row['failed'])} | {_share(row['by_controls'])} |"
            for row in tables["seeds"]
        ),
        "",
        "## 20 points of effect are lost: checks that fail",
        "",
        *_grid(tables["loss"]),
        "",
        "With all answers drawn again the two runs are independent samples, and no test of 100 prompts a run finds 20",
        "points in 95 % of the cases at 2 % false alarms where the rates are near one half.",
        "",
        "## Other losses (a tenth of the answers drawn again)",
        "",
        "| what | checks that fail |",
        "| --- | --- |",
        *(f"| {_what(row)} | {_share(row['failed'])} |" for row in tables["other"]),
        "",
    ]
    return "\n".join(lines)


def _grid(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| prompts | refusal untouched, ablated | "
        + " | ".join(f"{100 * share:.0f} % redrawn" for share in REDRAWN)
        + " |",
        "|" + " --- |" * (2 + len(REDRAWN)),
    ]
    for prompts, before, after in dict.fromkeys((row["prompts"], row["untouched"], row["ablated"]) for row in rows):
        at = {
            row["redrawn"]: _share(row["failed"])
            for row in rows
            if (row["prompts"], row["untouched"], row["ablated"]) == (prompts, before, after)
        }
        shown = [at.get(share, "") for share in REDRAWN]
        lines.append(f"| {prompts} | {before:g}, {after:g} | " + " | ".join(shown) + " |")
    return lines


def _what(row: dict[str, Any]) -> str:
    if row["replaced"]:
        return "the circuit is replaced by a random draw"
    if row["loss"]:
        return f"{100 * row['loss']:.0f} points of effect"
    if row["quality"]:
        return f"{row['quality']:g} of mean quality"
    return f"{100 * row['capability']:.0f} points of accuracy on {QUESTIONS} questions"


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if value < 0.1 else f"{100 * value:.1f} %"


def main() -> None:
    """Run all and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2_000, help="simulated pairs of runs a point")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes; the figures do not depend on it")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "simulation" / "check")
    given = parser.parse_args()
    start = time.perf_counter()
    tables = simulate(given.runs, given.seed, jobs=given.jobs)
    about = {
        "runs": given.runs,
        "seed": given.seed,
        "command": shlex.join(["python", "-m", "benchmarks.check_simulation", *sys.argv[1:]]),
        "machine": f"{cpu()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lm-eval-cna", "numpy", "scipy")},
        "tolerances": Tolerances().model_dump(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    document = {"schema": "lm-eval-cna/check-simulation/1", "about": about, "tables": tables}
    write_whole(given.output.with_suffix(".json"), (json.dumps(document, indent=1) + "\n").encode())
    write_whole(given.output.with_suffix(".md"), markdown(document).encode())
    print(markdown(document))


if __name__ == "__main__":
    main()
