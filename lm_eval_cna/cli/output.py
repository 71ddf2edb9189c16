"""Print to standard output and standard error, and show interventions and reports."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lm_eval_cna.cli.terminal import clean, show, show_table, show_text
from lm_eval_cna.report.escape import writable

if TYPE_CHECKING:
    from lm_eval_cna.interventions.circuit import Circuit
    from lm_eval_cna.interventions.stability import Stability
    from lm_eval_cna.interventions.vectors import Vectors
    from lm_eval_cna.results.directory import RunDirectory

# Without a terminal there is no screen width to wrap tables to.
output = Console(width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True)

_SECRET = re.compile(r"(key|token|headers?)=[^,]*", re.IGNORECASE)


def say(text: str, *, console: Console = output) -> None:
    """Print text without wrapping, markup or control characters."""
    show_text(console, text)


class LogPrinter(logging.Handler):
    """Prints log messages to standard error without control characters: they can hold text from servers and files."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        say(self.format(record), console=errors)


def print_intervention(intervention: Circuit | Vectors) -> None:
    """Print the facts of an intervention, and the layer profile of a circuit."""
    from lm_eval_cna.interventions.circuit import Circuit
    from lm_eval_cna.report.interventions import facts, profile_rows

    show_table(output, intervention.name, ("what", "value"), facts(intervention))
    if isinstance(intervention, Circuit):
        show_table(output, "layer profile", ("circuit", "share in", "all", "top 200"), profile_rows([intervention]))


def print_stability(record: Stability) -> None:
    """Print how stable a circuit is under cross-validation."""
    from lm_eval_cna.analysis.stability import judge
    from lm_eval_cna.report.stability import FOLD_HEAD, fold_rows, pair_rows, stability_rows

    found = judge(record)
    title = f"stability over {found.folds} folds of {record.contrast}, mean and range"
    show_table(output, title, ("measure", "value"), stability_rows(found))
    show_table(output, "by fold, KL in nats", FOLD_HEAD, fold_rows(record))
    show_table(output, "overlap of the folds' circuits", *pair_rows(record))
    for text in found.texts:
        say(text)


def print_report(path: Path) -> None:
    """Print the report's verdicts and first run, and the paths of the whole report."""
    title, *sections = path.read_text(encoding="utf-8").split("\n## ")
    shown = "\n## ".join([title, *sections[:2]])
    text = "\n".join(line for line in shown.splitlines() if not line.startswith("!["))
    if output.is_terminal:
        from rich.markdown import Markdown

        show(output, Markdown(clean(text, lines=True), hyperlinks=False))
    else:
        say(text)
    say(f"report: {path}")
    if (page := path.with_suffix(".html")).is_file():
        say(f"page: {page}")


def runs_in(directories: Sequence[Path]) -> list[RunDirectory]:
    """The runs in these directories, each once."""
    from lm_eval_cna.results.directory import find_runs

    return list({run.path.resolve(): run for directory in directories for run in find_runs(directory)}.values())


def typed_command() -> list[str]:
    """The command line for a run's manifest: API keys and tokens are removed, invalid UTF-8 becomes "?"."""
    return ["lm-eval-cna", *(writable(_SECRET.sub(r"\1=(not shown)", argument)) for argument in sys.argv[1:])]
