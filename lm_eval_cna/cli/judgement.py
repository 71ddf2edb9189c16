"""Commands that compare finished runs: check against a baseline, leaderboard."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lm_eval_cna.cli.options import CapabilityOption, QualityOption, RunsArgument
from lm_eval_cna.cli.output import output as console
from lm_eval_cna.cli.output import runs_in, say
from lm_eval_cna.cli.terminal import show_table
from lm_eval_cna.errors import ConfigError

REGRESSION = 1


class Direction(StrEnum):
    """Whether methods are ranked by lowering or by raising refusal."""

    down = "lower"
    up = "raise"


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    against: Annotated[Path, typer.Option(help="Baseline file.")],
    update: Annotated[
        bool, typer.Option("--update", help="Make this run the baseline; its tolerances are kept.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")] = None,
) -> None:
    """Compare a run with a stored baseline; exit status 1 if effect, quality or capability was lost."""
    from lm_eval_cna.analysis.baseline import make_baseline, read_baseline, write_baseline
    from lm_eval_cna.analysis.regression import check_run
    from lm_eval_cna.report import check as shown
    from lm_eval_cna.results.directory import RunDirectory

    run = RunDirectory(directory)
    if update:
        if junit is not None:
            raise ConfigError("--update checks nothing", do="leave out --junit")
        kept = read_baseline(against).tolerances if against.exists() else None
        write_baseline(against, make_baseline(run, tolerances=kept))
        say(f"baseline: {against}")
        return
    found = check_run(run, read_baseline(against))
    show_table(console, f"{found.run} against {found.against}", shown.HEAD, shown.rows(found))
    for note in found.notes:
        say(f"note: {note}")
    if junit is not None:
        RunDirectory(junit.parent).write_text(junit.name, shown.junit(found))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(shown.summary(found))
    say(shown.verdict(found))
    if not found.passed:
        raise typer.Exit(REGRESSION)


def leaderboard(
    directories: RunsArgument,
    output: Annotated[Path, typer.Option(help="Directory for leaderboard.md, .csv and .html.")],
    task: Annotated[str | None, typer.Option(help="Task whose refusal is ranked [the first].")] = None,
    direction: Annotated[Direction, typer.Option(help="Whether refusal should go down or up.")] = Direction.down,
    quality: QualityOption = 0.95,
    capability: CapabilityOption = 1.0,
) -> None:
    """Rank models and methods over many runs of one protocol, each at its best multiplier within a damage budget."""
    from lm_eval_cna.analysis.leaderboard import leaderboard as rank
    from lm_eval_cna.analysis.verdicts import DamageBudget
    from lm_eval_cna.report.leaderboard import check_output, remarks, table_of, write_leaderboard

    check_output(output)
    budget = DamageBudget(quality=quality, capability=capability / 100)
    found = rank(
        runs_in(directories), task=task, direction="raise" if direction is Direction.up else "lower", budget=budget
    )
    files, table = write_leaderboard(found, output), table_of(found)
    show_table(console, "leaderboard", table.head, [[entry.text for entry in row] for row in table.rows])
    for said in (table.caption, *remarks(found)):
        say(said)
    say(f"written: {', '.join(str(file) for file in files)}")
