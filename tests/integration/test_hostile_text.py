"""Hostile text in Markdown, LaTeX, CSV, JUnit XML, names of files, messages and on the terminal."""

from __future__ import annotations

import csv
import html
import io
import logging
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from lm_eval_cna import cli
from lm_eval_cna.analysis.baseline import make_baseline
from lm_eval_cna.analysis.leaderboard import Leaderboard, leaderboard
from lm_eval_cna.analysis.regression import Check, check_run
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.cli import output
from lm_eval_cna.cli.terminal import clean, progress, show_table, show_text
from lm_eval_cna.errors import CNAError
from lm_eval_cna.paper import page, rows
from lm_eval_cna.paper.page import Result, Skipped
from lm_eval_cna.report import escape
from lm_eval_cna.report.check import junit, summary
from lm_eval_cna.report.escape import code, fence, item, latex, markdown, plain, slug, writable
from lm_eval_cna.report.latex import latex_table
from lm_eval_cna.report.leaderboard import as_csv, as_markdown
from lm_eval_cna.report.markdown import document
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.sections import contents
from lm_eval_cna.report.tables import Entry, Table
from lm_eval_cna.results.directory import RunDirectory
from tests.helpers.report_runs import circuit_of, rich_run
from tests.helpers.rewriting import WORDS, Swap, fours, rewritten
from tests.helpers.xss import ALL

#: Those of which something is left when controls are taken out.
SHOWN = tuple(text for text in ALL if plain(text))
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
#: Pieces of a line that our own text has.
_PLAIN = {"text", "text_special", "code_inline", "strong_open", "strong_close", "image"}
#: What a CI system takes for a command, as GitHub's runner reads it: white space before `::` does not count.
COMMAND = re.compile(r"^\s*::|##\w*\[", re.MULTILINE)
#: What may stand in a terminal's output: no control but the line feed, nothing that turns the reading direction.
QUIET = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]*")
NAMES = ("model", "run", "method", "capability_task")
FORMULA = re.compile(r"\s*[=+\-@|%\uff1d\uff0b\uff0d\uff20]")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return rich_run(tmp_path_factory.mktemp("rich") / "run", n=20, controls=2)


@pytest.fixture(scope="module")
def board(rich: RunDirectory) -> Leaderboard:
    found = leaderboard([rich])
    ranked = [found.rows[0].model_copy(update=dict(zip(NAMES, four, strict=True))) for four in fours(ALL)]
    return found.model_copy(update={"rows": tuple(ranked), "notes": ALL})


@pytest.fixture(scope="module")
def checked(rich: RunDirectory) -> Check:
    """A check with a finding for every text, failed, and one for every text, passed."""
    found = check_run(rich, make_baseline(rich))
    names = ("cell", "task", "metric", "text")
    findings = tuple(
        found.findings[0].model_copy(update=dict.fromkeys(names, text) | {"passed": passed})
        for passed in (False, True)
        for text in ALL
    )
    named = dict.fromkeys(("run", "model", "against"), "".join(ALL))
    return found.model_copy(update={"findings": findings, "notes": SHOWN, **named})


def blocks(text: str) -> list[tuple[str, int, tuple[str, ...]]]:
    """Markdown as a reader takes it apart: its blocks, their depth and what is in them, the texts left out."""
    found = []
    for token in PARSER.parse(text):
        inside = tuple(inner.type for inner in token.children or [] if not inner.type.startswith("text"))
        assert set(inside) <= _PLAIN and token.type != "html_block", text
        found.append((token.type, token.level, inside))
    return found


def shape(text: str) -> tuple[int, ...]:
    """How many headings, tables, rows, cells, columns and items of lists there are."""
    kinds = Counter(kind for kind, *_ in blocks(text))
    return tuple(kinds[f"{kind}_open"] for kind in ("heading", "table", "tr", "td", "th", "list_item"))


def test_markdown_shows_a_text_as_it_was_and_neither_links_nor_mentions() -> None:
    for text in ALL:
        made = markdown(text)
        (_, line, _) = PARSER.parse(f"x{made}x")
        # Spaces of no width keep addresses from being links.
        assert "".join(inner.content for inner in line.children or []).replace("\u200b", "") == f"x{plain(text)}x"
        read = html.unescape(re.sub(r"\\([^\w\s])", r"\1", made))
        assert not re.search(r"://|\bwww\.|@\w", read, re.IGNORECASE), ascii(text)
        assert blocks(f"Model {code(text)}: x")[1] == ("inline", 1, ("code_inline",))
        (token,) = PARSER.parse(fence(text))
        assert token.type == "fence" and token.content.strip() == plain(text)


@pytest.mark.parametrize("place", ["# x {}", "| a |\n| --- |\n| {} |", "{item}"])
def test_a_text_begins_no_block_of_markdown(place: str) -> None:
    expected = blocks(place.replace("{item}", "- word").replace("{}", "word"))
    for text in SHOWN:
        assert blocks(place.replace("{item}", item(text)).replace("{}", markdown(text))) == expected, ascii(text)


def test_markdown_of_a_report(rich: RunDirectory) -> None:
    found = contents(read_runs([rich], DamageBudget()))
    figures = {"run": ["figures/a b)c.png"], "layers": ["figures/<x>.png"]}
    harmless, hostile = (document(rewritten(found, Swap(texts)), figures) for texts in (WORDS, SHOWN))
    assert blocks(hostile) == blocks(harmless)


def test_markdown_of_a_check_a_leaderboard_and_a_paper(checked: Check, board: Leaderboard, tmp_path: Path) -> None:
    n, columns = len(checked.findings), shape(summary(checked))[4]
    assert shape(summary(checked)) == (1, 1, n + 1, n * columns, columns, len(SHOWN))
    n, columns = len(board.rows), shape(as_markdown(board))[4]
    assert shape(as_markdown(board)) == (1, 1, n + 1, n * columns, columns, len(ALL) + 3)
    texts = [writable(text) for text in SHOWN]  # what comes from a command line is made so
    found = [rows.row(*four[:3], rows.figure(30), rows.rate([0.0, 1.0]), (four[3],)) for four in fours(texts)]
    result = Result(
        table="t", title="T", protocol="corrected", statement="s", published=("p",), ours=("o",), rows=tuple(found),
        skipped=tuple(Skipped(model=text, why=text) for text in texts), command=tuple(texts), created="now",
    )  # fmt: skip
    page.write_result(result, tmp_path)
    n, columns = len(found), len(page.HEAD)
    made = (tmp_path / "paper.md").read_text("utf-8")
    assert shape(made) == (1, 1, n + 1, n * columns, columns, len(texts) + 2)
    assert Result.model_validate_json((tmp_path / "paper.json").read_bytes()) == result


def unlatex(text: str) -> str:
    """LaTeX's reading of a text that holds none but our own commands; it refuses every other one."""
    back = {made: letter for letter, made in escape._LATEX.items()}
    found = re.compile("|".join(map(re.escape, sorted(back, key=len, reverse=True))))
    assert not set("\\{}$&#_%^~") & set(found.sub("", text)), ascii(text)
    return found.sub(lambda match: back[match[0]], text)


def test_latex_is_the_text_again_and_holds_no_command_of_its_own() -> None:
    entries = tuple((Entry(text), Entry(text)) for text in ALL)
    for text in ALL:
        assert unlatex(latex(text)) == plain(text)
    made = latex_table(Table("x", "".join(ALL), ("a", "".join(ALL)), entries)).splitlines()
    body = made[made.index("\\midrule") + 1 : made.index("\\bottomrule")]
    assert [line.removesuffix(" \\\\").split(" & ") for line in body] == [[latex(text)] * 2 for text in ALL]
    assert len(made) == len(ALL) + 11


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_spreadsheet_finds_no_formula(board: Leaderboard, separator: str) -> None:
    """Whatever character ends a cell in the spreadsheet's locale, and whatever it makes of quotes then."""
    text = as_csv(board)
    cells = {cell for row in csv.reader(io.StringIO(text), delimiter=separator) for cell in row}
    if separator != ",":
        cells |= {cell.lstrip('" ') for line in text.splitlines() for cell in line.split(separator)}
    assert not [cell for cell in cells if FORMULA.match(cell) and not re.fullmatch(r"-[\d.e-]+", cell)]
    if separator == ",":
        for row, four in zip(csv.DictReader(io.StringIO(text)), fours(ALL), strict=True):
            # The same text, but for the apostrophes that keep a formula from being one.
            assert [row[name].replace("'", "") for name in NAMES] == [plain(text).replace("'", "") for text in four]


def test_junit_xml_is_whole_and_the_texts_are_in_it(checked: Check) -> None:
    (suite,) = ElementTree.fromstring(junit(checked))
    assert suite.get("failures") == str(len(ALL)) and suite.get("tests") == str(2 * len(ALL)) == str(len(suite))
    for case, text in zip(suite, (*ALL, *ALL), strict=True):
        shown = plain(text).replace("\ufffe", "?").replace("\uffff", "?")
        assert case.get("name") == plain(f"{checked.findings[0].what} of {shown} on {shown} in {shown}")
        (said,) = case
        assert said.tag in ("failure", "system-out") and f"cell: {shown}" in plain(said.text or "")
        assert said.get("message") in (shown, None) and len(case.attrib) == 2


def test_names_of_files_stay_in_their_folder() -> None:
    taken: set[str] = set()
    names = [slug(text, taken) for text in ALL]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) and len(name) <= 90 for name in names)
    assert len({name.lower() for name in names}) == len(ALL)


def test_what_utf_8_cannot_hold_is_written_as_a_question_mark(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("x.json", {"texts": ALL})
    assert run.read_json("x.json") == {"texts": [text.encode(errors="replace").decode() for text in ALL]}


def a_console(*, is_terminal: bool, width: int = 200) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=is_terminal, color_system=None, legacy_windows=False), out


def assert_quiet(text: str) -> None:
    assert QUIET.fullmatch(text)
    assert not COMMAND.search(text)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_terminal_shows_the_text_and_obeys_nothing(is_terminal: bool) -> None:
    for text in ALL:
        to, out = a_console(is_terminal=is_terminal)
        show_text(to, text)
        assert_quiet(out.getvalue())
        # The one thing that is added is a space in what would be a command.
        assert out.getvalue().replace(" ", "") == f"{clean(text, lines=True)}\n".replace(" ", "")
    to, out = a_console(is_terminal=is_terminal, width=80)
    show_table(to, "".join(ALL[::9]), ("m", ALL[3]), [("0", text) for text in ALL])
    assert_quiet(out.getvalue())
    wrapped = re.sub(r"[\s\u2500-\u257f]", "", out.getvalue())
    for text in ALL:
        assert re.sub(r"[\s\u2500-\u257f]", "", clean(text)) in wrapped, ascii(text)
    to, out = a_console(is_terminal=is_terminal)
    with progress(to) as tell:
        for number, text in enumerate(ALL[::10]):
            tell(text if number < 9 else "stage", number % 2, 1, text)
            tell(text if number < 9 else "stage", 1, 1, text)
    ours = r"\x1b\[(?:\d*[ABK]|2K|\?25[lh])|\r" if is_terminal else "(?!)"
    assert QUIET.fullmatch(re.sub(ours, "", out.getvalue()))
    assert is_terminal or not COMMAND.search(out.getvalue())


def test_markup_of_the_console_is_text_beside_a_bar() -> None:
    to, out = a_console(is_terminal=True)
    with progress(to) as tell:
        tell("[/] [red]stage[/red] :smile:", 1, 2, "[link=http://x]cell[/link] [/nothing]")
    assert "[/] [red]stage[/red] :smile:" in out.getvalue()
    assert "[link=http://x]cell[/link] [/nothing]" in out.getvalue()


def test_errors_and_log_messages_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("apart")
    logger.addHandler(output.LogPrinter())
    for text in ALL:
        cli._fail(str(CNAError(text, got=text, allowed=text, do=text)))
        said = capsys.readouterr().err
        assert_quiet(said)
        assert said.startswith("error: ") and said.count("\n") == 1
        logger.warning("judge: %s", text)
        assert_quiet(capsys.readouterr().err)
    for text in ALL[::20]:
        if not text.startswith("--") and "\0" not in text:  # an option of ours; no argument holds a NUL
            assert cli.main(["show", text]) == 2
            found = capsys.readouterr()
            assert_quiet(found.err + found.out)
            assert found.err.startswith("error: ") and found.err.count("\n") == 1


def test_an_intervention_is_shown_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ALL[::5]:
        circuit = circuit_of([(1, 2)]).model_copy(update={"name": text})
        discovery = circuit.discovery.model_copy(update={"contrast": text, "leakage": text})
        model = circuit.model.model_copy(update={"id": text, "revision": text})
        output.print_intervention(circuit.model_copy(update={"discovery": discovery, "model": model}))
        assert_quiet(capsys.readouterr().out)


def test_the_command_in_a_manifest_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["lm-eval-cna", "sweep", "--output", "a\udcffb", "--judge-model-args", "key=x"]
    monkeypatch.setattr(sys, "argv", typed)
    assert output.typed_command() == [*typed[:3], "a?b", typed[4], "key=(not shown)"]
