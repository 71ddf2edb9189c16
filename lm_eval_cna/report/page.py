"""report.md of one run directory or of several, with a figure each; reads manifests and summaries only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from lm_eval_cna.errors import RunError
from lm_eval_cna.report.figures import overview
from lm_eval_cna.report.tables import Column, Row, Spread, columns, rows
from lm_eval_cna.sweep.rundir import RunDirectory
from lm_eval_cna.sweep.summary import read_summary

LEAST_SEEDS = 19  # 1 / (R + 1) = 0.05


class _Architecture(BaseModel):
    name: str
    num_layers: int
    mlp_width: int
    dtype: str


class _Cell(BaseModel):
    multiplier: float
    seed: int | None


class _Plan(BaseModel):
    model: str
    contrast: str
    random: int
    match: str
    cells: tuple[_Cell, ...]


class Manifest(BaseModel):
    """What the report shows of a manifest; it holds more."""

    plan: _Plan
    architecture: _Architecture
    command: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A run as the report shows it."""

    directory: RunDirectory
    manifest: Manifest
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
        run = Run(directory, _manifest(directory), shown, rows(summary, shown))
        stem = output / "figures" / run.name
        figures = overview(run.rows, shown, title=run.name, stem=stem)
        parts += _section(run, [Path(os.path.relpath(figure, output)) for figure in figures])
    RunDirectory(output).write_text("report.md", "\n\n".join(part for part in parts if part) + "\n")
    return output / "report.md"


def _manifest(directory: RunDirectory) -> Manifest:
    try:
        return Manifest.model_validate(directory.manifest())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"{directory.path / 'manifest.json'} is damaged: {where}: {first['msg']}", do="run the sweep again"
        ) from error


def _section(run: Run, figures: list[Path]) -> list[str]:
    plan, architecture = run.manifest.plan, run.manifest.architecture
    controlled = sorted({cell.multiplier for cell in plan.cells if cell.seed is not None})
    facts = (
        f"Model `{_code(plan.model)}`: {_text(architecture.name)}, {architecture.num_layers} layers of "
        f"{architecture.mlp_width} neurons, {_text(architecture.dtype)}. Contrast set `{_code(plan.contrast)}`; "
        f"control seeds: {plan.random}, matched by {_text(plan.match)}, asked at m = "
        f"{', '.join(f'{multiplier:g}' for multiplier in controlled) or 'none'}. "
        "Multiplier 1 is the untouched model for every method; 0 suppresses, 2 amplifies."
    )
    parts = [f"## {_text(run.name)}", facts, *verdicts(run)]
    for task in dict.fromkeys(column.task for column in run.shown):
        parts += [f"### {_text(task)}", markdown_table(task, run.shown, run.rows)]
    # A space or a bracket in the run's name would end the address.
    parts += [f"![Metrics over multipliers]({quote(f.as_posix())})" for f in figures if f.suffix == ".png"]
    parts.append(
        f"Files: `{_code(str(run.directory.path))}` (manifest.json, circuit and control files, one lm-eval results "
        f"file per cell under cells/, summary.json). Repeat: `{_code(' '.join(run.manifest.command))}`."
    )
    return parts


def verdicts(run: Run) -> list[str]:
    """One sentence for each refusal column and circuit size: the effect beside its controls.

    It is told at the least multiplier that has controls, or at the least of all where none has. The unit of the null is
    the control seed (DESIGN section 7): with fewer than 19 the sentence says how many there were and never
    "significant".
    """
    found = []
    for number, column in enumerate(run.shown):
        baseline = next((row.cells[number] for row in run.rows if row.method == "baseline"), None)
        if column.metric != "refusal_rate" or baseline is None:
            continue
        for size in dict.fromkeys(row.size for row in run.rows if row.method == "cna"):
            steered, controls = _points(run, "cna", size, number), _points(run, "random", size, number)
            if steered:
                multiplier = min(steered.keys() & controls.keys() or steered)
                verdict = _verdict(baseline, steered[multiplier], controls.get(multiplier), multiplier, size)
                found.append(f"- `{_code(column.task)}`: {verdict}")
    return ["\n".join(found)] if found else []


def _points(run: Run, method: str, size: int | None, number: int) -> dict[float, Spread]:
    """The values of a column by multiplier, for one method at one size."""
    return {
        row.multiplier: cell
        for row in run.rows
        if (row.method, row.size) == (method, size) and (cell := row.cells[number]) is not None
    }


def _verdict(baseline: Spread, effect: Spread, null: Spread | None, multiplier: float, size: int | None) -> str:
    text = (
        f"at m = {multiplier:g} the circuit{'' if size is None else f' of {size} neurons'} moves refusal by "
        f"{100 * (effect.mean - baseline.mean):+.1f} points "
        f"(from {100 * baseline.mean:.1f} % to {100 * effect.mean:.1f} %)"
    )
    if null is None:
        return f"{text}; no random controls were asked there, so nothing says that other neurons would not do the same."
    outside = effect.mean < null.low or effect.mean > null.high
    text += (
        f", {'outside' if outside else 'inside'} the range of {null.n} random controls "
        f"({100 * null.low:.1f} % to {100 * null.high:.1f} %, mean {100 * null.mean:.1f} %)."
    )
    return text if null.n >= LEAST_SEEDS else f"{text} Fewer than {LEAST_SEEDS} controls cannot support a test at 0.05."


def markdown_table(task: str, shown: list[Column], rows: list[Row]) -> str:
    """The method x multiplier table of a task; a control's cell is its mean with the range over seeds."""
    numbers = [number for number, column in enumerate(shown) if column.task == task]
    lines = [_line("method", "m", *(_text(shown[number].metric) for number in numbers))]
    lines.append("|" + " --- |" * (2 + len(numbers)))
    for row in rows:
        cells = [row.cells[number] for number in numbers]
        if any(cells):
            shown_cells = ("" if cell is None else _text(str(cell)) for cell in cells)
            lines.append(_line(_text(row.label), f"{row.multiplier:g}", *shown_cells))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    """Text from a file in prose or in a table: no markup, no HTML, no new column."""
    for mark in "\\`*_{}[]<>#|&":
        text = text.replace(mark, f"&#{ord(mark)};" if mark in "<>&|" else f"\\{mark}")
    return " ".join(text.split())


def _code(text: str) -> str:
    """Text from a file inside a code span."""
    return " ".join(str(text).replace("`", "'").split())
