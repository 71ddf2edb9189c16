"""Show a table and its plan as text, and write paper.md and paper.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from lm_eval_cna.contrast.loading import load_universal_prompts
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.paper.memory import GIB, Machine, memory_of, tokens_of
from lm_eval_cna.paper.plan import PaperRequest, contrast_prompts
from lm_eval_cna.paper.presets import Preset, Protocol, statement
from lm_eval_cna.paper.rows import PaperRow
from lm_eval_cna.paper.targets import Target, size_of
from lm_eval_cna.report.escape import item, markdown, writable
from lm_eval_cna.results.directory import RunDirectory

HEAD = ("model", "quantity", "setting", "published", "measured", "interval", "verdict", "like for like")
PLAN_HEAD = ("model", "parameters", "GiB (weights + cache)", "fits", "tasks", "tokens in + out", "like for like")
#: Tokens of a contrast prompt in its chat template, roughly.
_CONTRAST_TOKENS = 50


class Skipped(AnalysisRecord):
    """A model that has no rows, and the reason."""

    model: str
    why: str


class Result(AnalysisRecord):
    """A table as it came out."""

    schema_: Literal["lm-eval-cna/paper/1"] = Field(default="lm-eval-cna/paper/1", alias="schema")
    table: str
    title: str
    protocol: str
    """Its name; `statement` says what it does."""
    statement: str
    published: tuple[str, ...]
    """How the authors measured it."""
    ours: tuple[str, ...]
    """What is different here in every row."""
    rows: tuple[PaperRow, ...]
    """The comparisons."""
    skipped: tuple[Skipped, ...]
    """Models without rows."""
    command: tuple[str, ...]
    """What the user typed."""
    created: str
    """When, in UTC."""


def shown(row: PaperRow) -> tuple[str, ...]:
    """A row as text, in the order of `HEAD`."""
    # Percentages have a digit after the point, quality three, as published.
    digits = 3 if row.quantity == "quality" else 1
    interval = "" if row.interval is None else f"{row.interval.low:.{digits}f} to {row.interval.high:.{digits}f}"
    return (
        row.model,
        row.quantity,
        row.setting,
        row.published or "-",
        "-" if row.measured is None else f"{row.measured:.{digits}f}",
        interval or "-",
        row.verdict,
        "; ".join(("no", *row.differs)) if row.differs else "yes",
    )


def shown_plan(request: PaperRequest, target: Target, machine: Machine) -> tuple[str, ...]:
    """What one model would take as text, in the order of `PLAN_HEAD`; nothing is loaded, no network is needed."""
    size, memory, cells = size_of(target), memory_of(request, target), request.cells()
    needs = fits = "not known"
    if memory is not None:
        needs = f"{memory.total / GIB:.1f} ({memory.weights / GIB:.1f} + {memory.cache / GIB:.1f})"
        fits = "yes" if memory.total <= machine.memory else "no: skipped"
    asked = [(task, name, request.documents(task)) for task, name, _ in request.tasks_of(target)]
    read, generated = tokens_of([(task, documents) for task, _, documents in asked], cells=cells)
    read += _CONTRAST_TOKENS * (contrast_prompts(request.contrast_of(target)) + len(load_universal_prompts()))
    differs = request.differs(target)
    return (
        target.name,
        "not known" if size is None else f"{size.parameters / 1e9:.3g} B ({size.source})",
        needs,
        fits,
        ", ".join(f"{name} ({documents}) x {cells} cells" for _, name, documents in asked) or "discovery only",
        f"{read:,} + {generated:,}",
        "; ".join(("no", *differs)) if differs else "yes",
    )


def notes(preset: Preset, protocol: Protocol) -> list[str]:
    """The protocol in sentences."""
    return [
        f"{preset.title}.",
        f"Protocol {statement(protocol)}.",
        f"Published: {'; '.join(preset.published)}.",
        f"In every row of ours: {'; '.join(preset.ours)}.",
    ]


def machine_note(machine: Machine) -> str:
    """The machine that the plan is for, in a sentence."""
    return f"This machine: {machine.name}, {machine.memory / GIB:.1f} GiB for a model."


def kinds(rows: Sequence[PaperRow]) -> str:
    """The kinds of interval that a table has, in a sentence; "" where it has none."""
    found = dict.fromkeys(row.interval_is for row in rows if row.interval is not None)
    return f"Intervals, of 95 % where they are statistical: {'; '.join(found)}." if found else ""


def write_result(result: Result, folder: Path) -> None:
    """Write paper.json and paper.md, each whole or not at all.

    Raises:
        RunError: the directory cannot be written.
    """
    directory = RunDirectory(folder)
    directory.write_text("paper.json", result.model_dump_json(indent=1, by_alias=True) + "\n")
    lines = [f"# {result.title}", "", f"Protocol {result.statement}.", ""]
    lines += ["Published:", "", *(f"- {line}" for line in result.published), ""]
    lines += ["In every row of ours:", "", *(f"- {line}" for line in result.ours), ""]
    lines += [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(shown(row)) for row in result.rows), ""]
    if kinds(result.rows):
        lines += [kinds(result.rows), ""]
    if result.skipped:
        lines += ["Skipped:", "", *(item(f"{one.model}: {one.why}") for one in result.skipped), ""]
    directory.write_text("paper.md", writable("\n".join(lines)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown(cell) for cell in cells)} |"
