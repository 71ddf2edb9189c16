"""Writes the report of one run or of several: report.html, report.md, tables/*.tex and figures/*.{png,pdf}."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import RunError
from lm_eval_cna.report.escape import slug, writable
from lm_eval_cna.report.figures import draw
from lm_eval_cna.report.files import ReportFiles
from lm_eval_cna.report.html import page
from lm_eval_cna.report.latex import latex_table
from lm_eval_cna.report.markdown import document
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.samples import browser_data
from lm_eval_cna.report.sections import Contents, contents
from lm_eval_cna.results.directory import RunDirectory


def write_report(
    directories: Sequence[RunDirectory],
    output: Path,
    *,
    preface: str = "",
    budget: DamageBudget | None = None,
    samples: bool = True,
) -> Path:
    """Write the report into `output`; each run directory also gets its statistics as `evidence.json`.

    Tables and figures that an earlier report wrote there and this one does not are removed; no other file is touched.

    Args:
        directories: finished runs.
        output: where the report goes.
        preface: Markdown that stands before the runs; trusted.
        budget: the damage that the best setting may do.
        samples: whether the page holds prompts and completions.

    Returns:
        The path of report.md; report.html is beside it.

    Raises:
        RunError: a run is unfinished or damaged, or the report cannot be written.
        InterventionError: a run's circuit is damaged.
    """
    runs = read_runs(directories, budget or DamageBudget())
    found = contents(runs, preface=preface)
    html = page(found, browser_data(runs) if samples else None)
    files = ReportFiles(output)
    figures = _figures(found, output, files)
    taken: set[str] = set()
    for table in (*(table for part in found.parts for table in part.tables), found.profile, found.overlaps):
        if table is not None:
            files.write_text(f"tables/{slug(table.name, taken)}.tex", writable(latex_table(table)))
    files.write_text("report.html", html)
    files.write_text("report.md", document(found, figures))
    files.finish()
    return output / "report.md"


def _figures(found: Contents, output: Path, kept: ReportFiles) -> dict[str, list[str]]:
    """Draw all figures; returns the PNG files, relative to the report, by run."""
    drawn: dict[str, list[str]] = {}
    wanted = [
        (part.run.slug, f"{part.run.slug}-{name}", panels, f"{part.run.name}: {name}")
        for part in found.parts
        for name, panels in part.figures.items()
    ]
    wanted.append(("layers", "layers", found.layers, "Where the circuits sit"))
    taken: set[str] = set()
    for owner, name, panels, title in wanted:
        try:
            files = draw(panels, title=title, stem=kept.place(f"figures/{slug(name, taken)}"))
        except OSError as error:
            raise RunError(f"cannot write the figures in {output}: {error.strerror or error}") from error
        kept.add(files)
        drawn.setdefault(owner, []).extend(os.path.relpath(file, output) for file in files if file.suffix == ".png")
    return drawn
