"""What the command line shows: no control characters, plain lines where there is no terminal."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lm_eval_cna.cli import terminal
from lm_eval_cna.cli.terminal import clean, progress, show_table


def console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100, force_terminal=is_terminal, color_system=None, legacy_windows=False), out


@pytest.mark.parametrize("text", ["\x1b[2J\x1b[H", "\x9b31m", "a\rb", "\u202eabc", "\x00"])
def test_control_characters_are_shown_and_not_obeyed(text: str) -> None:
    shown = clean(text)
    assert len(shown) == len(text) and shown.isprintable() and shown != text


def test_ordinary_text_is_left_alone_and_other_spaces_are_spaces() -> None:
    text = "Tschüß, 你好 [bold]x[/bold] \U0001f600"
    assert clean(text) == text
    assert clean("a\nb", lines=True) == "a\nb" and "\n" not in clean("a\nb")
    assert clean("a\tb\xa0c\u3000d") == "a b c d"


@given(st.text())
def test_whatever_a_model_writes(text: str) -> None:
    assert clean(text).isprintable()
    assert clean(text, lines=True).replace("\n", "").isprintable()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_table_shows_text_as_text(is_terminal: bool) -> None:
    to, out = console(is_terminal=is_terminal)
    show_table(to, "[red]title[/red]\x1b[2J", ("m", "[b]head[/b]"), [("0", "[link=x]one[/link]\nline two\x1b]0;t\x07")])
    shown = out.getvalue()
    assert "[link=x]one[/link]" in shown and "line two" in shown and "[b]head[/b]" in shown
    assert "[red]title[/red]" in shown
    assert "\x1b[2J" not in shown and "\x1b]" not in shown and "\x07" not in shown
    assert is_terminal or "\u2501" not in shown, "no borders without a terminal"


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 2.0)  # two seconds between calls
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    to, out = console(is_terminal=False)
    with progress(to) as tell:
        for done in range(11):
            tell("sweep", done, 10, f"cell[{done}]\x1b[2J")
        tell("indexing", 0, 0, "")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("sweep: 0/10 cell[0]") and lines[-1] == "indexing:"
    assert lines[1].startswith("sweep: 3/10") and lines[1].endswith("about 14 s left")  # 6 s for 3, 7 to go
    assert lines[-2].startswith("sweep: 10/10") and "left" not in lines[-2]
    assert len(lines) == 6  # 0, 3, 6, 9 at six seconds' distance, the end, and the other stage
    assert "\x1b" not in out.getvalue()


def test_bars_on_a_terminal_end_with_an_error() -> None:
    to, out = console(is_terminal=True)
    with pytest.raises(KeyboardInterrupt), progress(to) as tell:
        tell("sweep", 1, 4, "cna-m0")
        tell("sweep", 4, 4, "done\x1b]0;t\x07")
        raise KeyboardInterrupt
    assert "4/4" in out.getvalue() and "\x1b]0" not in out.getvalue()
    assert "\x1b[?25h" in out.getvalue(), "the cursor is back"
