"""A table for reading: rows of text for the terminal, paper.md and paper.json in the output directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval_cna.paper.estimate import Machine
from lm_eval_cna.paper.presets import Preset, Protocol, statement
from lm_eval_cna.paper.preview import Planned
from lm_eval_cna.paper.result import Result
from lm_eval_cna.paper.rows import PaperRow
from lm_eval_cna.report.escape import item, markdown, writable
from lm_eval_cna.results.directory import RunDirectory

HEAD = ("model", "quantity", "setting", "published", "measured", "interval", "verdict", "like for like")
PLAN_HEAD = ("model", "parameters", "memory", "fits", "time", "tasks", "like for like")
_GIB = 2**30


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


def shown_plan(planned: Planned) -> tuple[str, ...]:
    """A model of a plan as text, in the order of `PLAN_HEAD`."""
    fits = {None: "not known", True: "yes", False: "no: would be skipped"}[planned.fits]
    return (
        planned.model,
        "not known" if planned.size is None else f"{planned.size / 1e9:.3g} B ({planned.source})",
        "not known" if planned.memory is None else f"{planned.memory / _GIB:.1f} GiB",
        fits,
        "not known" if planned.seconds is None else _duration(planned.seconds),
        planned.tasks,
        "; ".join(("no", *planned.differs)) if planned.differs else "yes",
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
    """The machine's figures that an estimate rests on."""
    return (
        f"This machine: {machine.name}, {machine.memory / _GIB:.1f} GiB for a model, F = {machine.flops / 1e12:.3g} "
        f"TFLOP/s, B = {machine.bandwidth / 1e9:.3g} GB/s."
    )


def kinds(rows: Sequence[PaperRow]) -> str:
    """What the intervals of a table are."""
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
