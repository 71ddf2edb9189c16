"""The leaderboard as leaderboard.md, leaderboard.csv and leaderboard.html; names come from files and are escaped."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lm_eval_cna.analysis.leaderboard import Leaderboard, LeaderboardRow
from lm_eval_cna.errors import RunError
from lm_eval_cna.report.escape import csv_cell, item, markdown, plain, writable
from lm_eval_cna.report.html import render
from lm_eval_cna.report.markdown import markdown_table
from lm_eval_cna.report.tables import NAMES, Entry, Table
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.statistics.rates import Interval

HEAD = (
    *("model", "method", "rank", "best m", "effect, points", "beyond controls", "quality", "degenerate"),
    *("StrongREJECT", "capability, points", "run"),
)
_WORDS = 2
_COLUMNS = (
    *("rank", "model", "run", "method", "neurons", "multiplier", "effect_points", "effect_low", "effect_high"),
    *("controls", "strongreject", "strongreject_low", "strongreject_high", "quality", "degenerate_percent"),
    *("capability_task", "capability_points", "capability_low", "capability_high"),
)
_STANDINGS = {"beyond": "yes", "within": "no", "untested": "not tested"}


def table_of(found: Leaderboard) -> Table:
    """The leaderboard as a table of unescaped single lines."""
    return Table(
        name="leaderboard",
        caption=caption(found),
        head=HEAD,
        rows=tuple(_entries(row) for row in found.rows),
        words=_WORDS,
    )


def caption(found: Leaderboard) -> str:
    """The ranking in a sentence."""
    budget, way = found.budget, "falls" if found.direction == "lower" else "rises"
    return (
        f"Runs of one protocol, ranked by how far refusal on {found.task} {way} at each method's best multiplier "
        f"with mean quality at least {budget.quality:g}, at most {100 * budget.degenerate:g} points more degenerate "
        f"texts and a loss of capability of at most {100 * budget.capability:g} points."
    )


def remarks(found: Leaderboard) -> list[str]:
    """Notes for the reader, unescaped."""
    said = [
        "Effect and capability are changes from the untouched model, with 95 % intervals; capability is the worst of "
        "the capability tasks. The best of several multipliers is a little flattered by having been chosen.",
        "A method without a multiplier has none within the budget that moves refusal that way.",
        "Beyond controls: whether the effect is more than other neurons, or vectors, chosen at random have (rank test "
        "over control seeds; not tested with fewer than 19 of them).",
    ]
    return said + [f"Caution: {note}." for note in found.notes]


def write_leaderboard(found: Leaderboard, output: Path) -> list[Path]:
    """Write the three files, each whole or not at all.

    Raises:
        RunError: a file cannot be written.
    """
    files = RunDirectory(output)
    for name, text in (("md", as_markdown(found)), ("csv", as_csv(found)), ("html", as_html(found))):
        files.write_text(f"leaderboard.{name}", text)
    return [output / f"leaderboard.{name}" for name in ("md", "csv", "html")]


def as_markdown(found: Leaderboard) -> str:
    """The leaderboard for a pull request or a model card."""
    notes = "\n".join(map(item, remarks(found)))
    return writable(f"# Leaderboard\n\n{markdown(caption(found))}\n\n{markdown_table(table_of(found))}\n\n{notes}\n")


def as_csv(found: Leaderboard) -> str:
    """The unrounded numbers, for a spreadsheet or a program; no text can be a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in found.rows:
        effect, score, lost = (
            (None, None) if interval is None else (interval.low, interval.high)
            for interval in (row.interval, row.strongreject_interval, row.capability_interval)
        )
        writer.writerow(
            [
                *(row.rank, _safe(row.model), _safe(row.run), _safe(row.method), row.size, row.multiplier),
                *(_percent(value) for value in (row.effect, *effect)),
                *(row.standing, row.strongreject, *score, row.quality, _percent(row.degenerate)),
                *(_safe(row.capability_task), *(_percent(value) for value in (row.capability, *lost))),
            ]
        )
    return writable(text.getvalue())


def as_html(found: Leaderboard) -> str:
    """The leaderboard as one page that opens from disk and loads nothing."""
    return render("leaderboard.html.jinja", table=table_of(found), remarks=remarks(found))


def check_output(output: Path) -> None:
    """Refuse to write a leaderboard into a run directory.

    Raises:
        RunError: `output` is a run directory.
    """
    if (output / "manifest.json").is_file():
        raise RunError("a leaderboard is about several runs", got=str(output), do="give --output a folder of its own")


def _entries(row: LeaderboardRow) -> tuple[Entry, ...]:
    size = "" if row.size is None else f", {row.size} neurons"
    m = row.multiplier
    standing = None if row.standing is None else _STANDINGS[row.standing]
    task = "" if row.capability_task is None else f" {plain(row.capability_task)}"
    return (
        Entry(plain(row.model), plain(row.model)),
        Entry(NAMES.get(row.method, row.method), row.method),
        Entry(str(row.rank), row.rank),
        Entry("none" if m is None else f"{m:g}{size}", m),
        _points(row.effect, row.interval),
        Entry("-" if standing is None else standing, standing),
        _number(row.quality, None, ".3f"),
        _number(row.degenerate, None, ".1f", factor=100, after=" %"),
        _number(row.strongreject, row.strongreject_interval, ".3f"),
        _points(row.capability, row.capability_interval, task),
        Entry(plain(row.run), plain(row.run)),
    )


def _points(value: float | None, interval: Interval | None, after: str = "") -> Entry:
    return _number(value, interval, "+.1f", factor=100, after=after)


def _number(value: float | None, interval: Interval | None, form: str, *, factor: float = 1, after: str = "") -> Entry:
    if value is None:
        return Entry("-")
    shown = [format(factor * one, form) for one in (value, *((interval.low, interval.high) if interval else ()))]
    within = f" ({shown[1]} to {shown[2]})" if interval else ""
    return Entry(f"{shown[0]}{within}{after}", value)


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)


def _safe(text: str | None) -> str | None:
    return None if text is None else csv_cell(text)
