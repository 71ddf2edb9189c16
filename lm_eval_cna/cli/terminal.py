"""Progress and tables: rich on a terminal, plain lines elsewhere.

Text from models and files is printed without markup and control characters.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rich.progress
from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from lm_eval_cna.files.progress import Progress

_PLAIN_EVERY = 5.0  # seconds between plain lines of one stage
#: CI systems execute such text in a log: `::name` at the start of a line, `##[name` or `##vso[name` anywhere.
_COMMAND = re.compile(r"^[^\S\n]*:(?=:)|#(?=#\w*\[)", re.MULTILINE)


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Show the progress of long work and the time left; yields a function of (stage, done, total, detail).

    A terminal gets one bar for each stage; other outputs get a line at the start and end and every few seconds.
    """
    if not console.is_terminal:
        yield _plain(console)
        return
    bars = rich.progress.Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
    )
    with bars:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int, detail: str = "") -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(clean(stage), total=None, detail="")
            bars.update(stages[stage], completed=done, total=total or None, detail=clean(detail))

        yield tell


def _plain(console: Console) -> Progress:
    started: dict[str, float] = {}
    told: dict[str, float] = {}

    def tell(stage: str, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        first = stage not in started
        started.setdefault(stage, now)
        if not first and done < total and now - told[stage] < _PLAIN_EVERY:
            return
        told[stage] = now
        left = ""
        if 0 < done < total:
            left = f", about {(now - started[stage]) * (total - done) / done:.0f} s left"
        count = f" {done}/{total}" if total else ""
        line = f"{clean(stage)}:{count} {clean(detail)}".rstrip() + left
        show_text(console, line)

    return tell


def show_table(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of untrusted text; without borders if the output is not a terminal."""
    plain = not console.is_terminal
    built = Table(title=Text(clean(title)), title_justify="left", box=None if plain else HEAVY_HEAD)
    for name in head:
        built.add_column(Text(clean(name)), overflow="fold")
    for row in rows:
        built.add_row(*(Text(clean(cell, lines=True)) for cell in row))
    show(console, built)


def show_text(console: Console, text: str) -> None:
    """Print text without wrapping, markup or control characters other than line breaks."""
    show(console, clean(text, lines=True), markup=False, highlight=False, emoji=False, soft_wrap=True)


def show(console: Console, shown: Any, **options: Any) -> None:
    """Print with a space inside CI commands, so that a CI system does not execute them."""
    with console.capture() as captured:
        console.print(shown, **options)
    console.file.write(_COMMAND.sub(r"\g<0> ", captured.get()))
    console.file.flush()


def clean(text: str, *, lines: bool = False) -> str:
    """Replace control characters, which could move the cursor or retitle the terminal; `lines` keeps line breaks.

    Other white space, such as tabs, becomes a space.
    """
    return "".join(_shown(char, lines=lines) for char in text)


def _shown(char: str, *, lines: bool) -> str:
    if char.isprintable() or (lines and char == "\n"):
        return char
    return " " if char.isspace() else "�"
