"""The leaderboard as leaderboard.md, leaderboard.csv and leaderboard.html; names come from files and are escaped."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from markupsafe import Markup

from lm_eval_cna import __version__
from lm_eval_cna.analysis.leaderboard import Leaderboard, LeaderboardRow
from lm_eval_cna.errors import RunError
from lm_eval_cna.report.escape import csv_cell, item, markdown, plain, writable
from lm_eval_cna.report.inline import environment, policy, source
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
    style, script = source("report.css"), source("report.js")
    text = (
        environment()
        .get_template("leaderboard.html.jinja")
        .render(
            table=table_of(found),
            remarks=remarks(found),
            style=Markup(style),  # files of this package
            script=Markup(script),
            policy=policy(style, script),
            version=__version__,
        )
    )
    return writable(text)


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
        Entry("-" if row.quality is None else f"{row.quality:.3f}", row.quality),
        Entry("-" if row.degenerate is None else f"{100 * row.degenerate:.1f} %", row.degenerate),
        _score(row.strongreject, row.strongreject_interval),
        _points(row.capability, row.capability_interval, task),
        Entry(plain(row.run), plain(row.run)),
    )


def _points(value: float | None, interval: Interval | None, after: str = "") -> Entry:
    if value is None:
        return Entry("-")
    within = "" if interval is None else f" ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    return Entry(f"{100 * value:+.1f}{within}{after}", value)


def _score(value: float | None, interval: Interval | None) -> Entry:
    if value is None:
        return Entry("-")
    within = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    return Entry(f"{value:.3f}{within}", value)


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)


def _safe(text: str | None) -> str | None:
    return None if text is None else csv_cell(text)
