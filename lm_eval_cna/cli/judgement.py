"""Commands that pass judgement on finished runs: check against a baseline, leaderboard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lm_eval_cna.cli.output import output as console
from lm_eval_cna.cli.output import say
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.terminal import show_table

REGRESSION = 1


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    against: Annotated[Path, typer.Option(help="Baseline file.")],
    update: Annotated[bool, typer.Option("--update", help="Make this run the baseline; tolerances stay.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there too.")] = None,
) -> None:
    """Hold a run against a stored baseline; exit status 1 where an effect, quality or capability was lost."""
    from lm_eval_cna.analysis.baseline import make_baseline, read_baseline, write_baseline
    from lm_eval_cna.analysis.regression import check_run
    from lm_eval_cna.report import check as shown
    from lm_eval_cna.sweep.rundir import RunDirectory

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
