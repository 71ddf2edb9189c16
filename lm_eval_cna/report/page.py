"""report.md of one run directory or of several, with a figure each; reads manifests and summaries only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_cna.report.figures import overview
from lm_eval_cna.report.tables import Column, Row, columns, rows
from lm_eval_cna.sweep.rundir import RunDirectory
from lm_eval_cna.sweep.summary import read_summary

LEAST_SEEDS = 19  # 1 / (R + 1) = 0.05


@dataclass(frozen=True)
class Run:
    """A run as the report shows it."""

    directory: RunDirectory
    manifest: dict[str, Any]
    shown: list[Column]
    rows: list[Row]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.path.resolve().name


def write_report(directories: list[RunDirectory], output: Path, *, preface: str = "") -> Path:
    """Write `report.md` and `figures/` into `output`.

    Args:
        directories: finished runs.
        output: where the report goes.
        preface: Markdown that stands before the runs.

    Returns:
        The path of report.md.

    Raises:
        RunError: a run is unfinished or damaged.
    """
    parts = ["# What steering does", preface] if preface else ["# What steering does"]
    for directory in directories:
        summary = read_summary(directory)
        shown = columns(summary)
        run = Run(directory, directory.manifest(), shown, rows(summary, shown))
        stem = output / "figures" / run.name
        figures = overview(run.rows, shown, title=run.name, stem=stem)
        parts += _section(run, [os.path.relpath(figure, output) for figure in figures])
    RunDirectory(output).write_text("report.md", "\n\n".join(part for part in parts if part) + "\n")
    return output / "report.md"


def _section(run: Run, figures: list[str]) -> list[str]:
    plan, architecture = run.manifest["plan"], run.manifest["architecture"]
    facts = (
        f"Model `{_code(plan['model'])}`: {architecture['name']}, {architecture['num_layers']} layers of "
        f"{architecture['mlp_width']} neurons, {architecture['dtype']}. Contrast set `{_code(plan['contrast'])}`; "
        f"control seeds: {plan['random']}, matched by {plan['match']}, asked at m = "
        + (
            ", ".join(f"{m:g}" for m in sorted({c["multiplier"] for c in plan["cells"] if c["seed"] is not None}))
            or "none"
        )
        + ". Multiplier 1 is the untouched model for every method; 0 suppresses, 2 amplifies."
    )
    parts = [f"## {_cell(run.name)}", facts, *verdicts(run)]
    for task in dict.fromkeys(column.task for column in run.shown):
        parts += [f"### {_cell(task)}", markdown_table(task, run.shown, run.rows)]
    parts += [f"![Metrics over multipliers]({figure})" for figure in figures if figure.endswith(".png")]
    parts.append(
        f"Files: `{run.directory.path}` (manifest.json, circuit and control files, one lm-eval results file per cell "
        f"under cells/, summary.json). Repeat: `{_code(' '.join(run.manifest['command']))}`."
    )
    return parts


def verdicts(run: Run) -> list[str]:
    """One sentence for each circuit and refusal column: the effect at the least multiplier beside its controls.

    The unit of the null is the control seed (DESIGN section 7): with fewer than 19 the sentence says how many there
    were and never "significant".
    """
    found = []
    for number, column in enumerate(run.shown):
        if column.metric != "refusal_rate":
            continue
        baseline = next((row.cells[number] for row in run.rows if row.method == "baseline"), None)
        steered = [row for row in run.rows if row.method == "cna"]
        if baseline is None or not steered:
            continue
        row = min(steered, key=lambda row: row.multiplier)
        controls = [r for r in run.rows if (r.method, r.multiplier, r.size) == ("random", row.multiplier, row.size)]
        effect, null = row.cells[number], controls[0].cells[number] if controls else None
        if effect is None:
            continue
        change = 100 * (effect.mean - baseline.mean)
        text = (
            f"`{_code(column.task)}`: at m = {row.multiplier:g} the circuit moves refusal by {change:+.1f} points "
            f"(from {100 * baseline.mean:.1f} % to {100 * effect.mean:.1f} %)"
        )
        if null is None:
            text += "; no random controls were asked, so nothing says that other neurons would not do the same."
        else:
            outside = effect.mean < null.low or effect.mean > null.high
            text += (
                f", {'outside' if outside else 'inside'} the range of {null.n} random controls "
                f"({100 * null.low:.1f} % to {100 * null.high:.1f} %, mean {100 * null.mean:.1f} %)."
            )
            if null.n < LEAST_SEEDS:
                text += f" Fewer than {LEAST_SEEDS} controls cannot support a test at 0.05."
        found.append(text)
    return ["\n".join(f"- {text}" for text in found)] if found else []


def markdown_table(task: str, shown: list[Column], rows: list[Row]) -> str:
    """The method x multiplier table of a task; a control's cell is its mean with the range over seeds."""
    numbers = [number for number, column in enumerate(shown) if column.task == task]
    lines = [_line("method", "m", *(_cell(shown[number].metric) for number in numbers))]
    lines.append("|" + " --- |" * (2 + len(numbers)))
    for row in rows:
        cells = [row.cells[number] for number in numbers]
        if any(cells):
            shown_cells = ("" if cell is None else _cell(str(cell)) for cell in cells)
            lines.append(_line(_cell(row.label), f"{row.multiplier:g}", *shown_cells))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Text from a file as a table cell: no markup, no HTML, no new column."""
    for mark in "\\`*_{}[]<>#|&":
        text = text.replace(mark, f"&#{ord(mark)};" if mark in "<>&|" else f"\\{mark}")
    return " ".join(text.split())


def _code(text: str) -> str:
    """Text from a file inside a code span."""
    return " ".join(str(text).replace("`", "'").split())
