"""Hostile text in LaTeX, CSV, JUnit XML, names of files, messages and on the terminal."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from lm_eval_cna import cli
from lm_eval_cna.analysis.baseline import make_baseline
from lm_eval_cna.analysis.leaderboard import Leaderboard, leaderboard
from lm_eval_cna.analysis.regression import check_run
from lm_eval_cna.cli import output
from lm_eval_cna.cli.terminal import clean, progress, show_table, show_text
from lm_eval_cna.errors import CNAError
from lm_eval_cna.report import escape
from lm_eval_cna.report.check import junit
from lm_eval_cna.report.escape import latex, plain, slug
from lm_eval_cna.report.latex import latex_table
from lm_eval_cna.report.leaderboard import as_csv
from lm_eval_cna.report.tables import Entry, Table
from lm_eval_cna.results.directory import RunDirectory
from tests.helpers.report_runs import circuit_of, rich_run
from tests.helpers.rewriting import fours
from tests.helpers.xss import ALL

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
    rows = [found.rows[0].model_copy(update=dict(zip(NAMES, four, strict=True))) for four in fours(ALL)]
    return found.model_copy(update={"rows": tuple(rows)})


def unlatex(text: str) -> str:
    """LaTeX's reading of a text that holds none but our own commands; it refuses every other one."""
    back = {made: letter for letter, made in escape._LATEX.items()}
    found = re.compile("|".join(map(re.escape, sorted(back, key=len, reverse=True))))
    assert not set("\\{}$&#_%^~") & set(found.sub("", text)), ascii(text)
    return found.sub(lambda match: back[match[0]], text)


def test_latex_is_the_text_again_and_holds_no_command_of_its_own() -> None:
    rows = tuple((Entry(text), Entry(text)) for text in ALL)
    for text in ALL:
        assert unlatex(latex(text)) == plain(text)
    made = latex_table(Table("x", "".join(ALL), ("a", "".join(ALL)), rows)).splitlines()
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


def test_csv_is_the_text_again(board: Leaderboard) -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(board))))
    for row, four in zip(read, fours(ALL), strict=True):
        # But for the apostrophes that keep a formula from being one.
        assert [row[name].replace("'", "") for name in NAMES] == [plain(text).replace("'", "") for text in four]


def test_junit_xml_is_whole_and_the_texts_are_in_it(rich: RunDirectory) -> None:
    found = check_run(rich, make_baseline(rich))
    (finding, *_) = found.findings
    findings = tuple(
        finding.model_copy(update={"task": text, "metric": text, "cell": text, "text": text, "passed": failed})
        for failed in (False, True)
        for text in ALL
    )
    made = junit(found.model_copy(update={"findings": findings, "run": "".join(ALL)}))
    (suite,) = ElementTree.fromstring(made)
    assert suite.get("failures") == str(len(ALL)) and suite.get("tests") == str(2 * len(ALL)) == str(len(suite))
    for case, text in zip(suite, (*ALL, *ALL), strict=True):
        shown = plain(text).replace("\ufffe", "?").replace("\uffff", "?")
        assert case.get("name") == plain(f"{finding.what} of {shown} on {shown} in {shown}")
        (said,) = case
        assert said.tag in ("failure", "system-out") and f"cell: {shown}" in plain(said.text or "")
        assert said.get("message") in (shown, None) and len(case.attrib) == 2


def test_names_of_files_stay_in_their_folder() -> None:
    taken: set[str] = set()
    names = [slug(text, taken) for text in ALL]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) and len(name) <= 90 for name in names)
    assert len({name.lower() for name in names}) == len(ALL)


def test_what_utf_8_cannot_hold_is_written_as_json_has_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("x.json", {"texts": ALL})
    assert run.read_json("x.json") == {"texts": list(ALL)}
    assert json.loads((tmp_path / "x.json").read_bytes())["texts"] == list(ALL)


def a_console(*, is_terminal: bool, width: int = 200) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=is_terminal, color_system=None, legacy_windows=False), out


def assert_quiet(text: str) -> None:
    assert QUIET.fullmatch(text)
    assert not COMMAND.search(text)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lines_on_the_terminal_are_the_text(is_terminal: bool) -> None:
    for text in ALL:
        to, out = a_console(is_terminal=is_terminal)
        show_text(to, text)
        assert_quiet(out.getvalue())
        # The one thing that is added is a space in what would be a command.
        assert out.getvalue().replace(" ", "") == f"{clean(text, lines=True)}\n".replace(" ", "")


@pytest.mark.parametrize(("is_terminal", "width"), [(True, 80), (False, 200), (False, 60)])
def test_tables_on_the_terminal(is_terminal: bool, width: int) -> None:
    to, out = a_console(is_terminal=is_terminal, width=width)
    show_table(to, "".join(ALL[::9]), ("m", ALL[3]), [("0", text) for text in ALL])
    assert_quiet(out.getvalue())
    folded = re.sub(r"[\s\u2500-\u257f]", "", out.getvalue())
    for text in ALL:
        assert re.sub(r"[\s\u2500-\u257f]", "", clean(text)) in folded, ascii(text)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_takes_any_name(is_terminal: bool) -> None:
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


def test_errors_are_one_quiet_line(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ALL:
        cli._fail(str(CNAError(text, got=text, allowed=text, do=text)))
        said = capsys.readouterr().err
        assert_quiet(said)
        assert said.startswith("error: ") and said.count("\n") == 1


def test_commands_say_quietly_that_there_is_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ALL[::41]:
        if not text.startswith("--") and "\0" not in text:  # an option of ours; no argument holds a NUL
            assert cli.main(["show", text]) == 2
            found = capsys.readouterr()
            assert_quiet(found.err + found.out)
            assert found.err.startswith("error: ") and found.err.count("\n") == 1


def test_an_intervention_is_shown_quietly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ALL[::11]:
        circuit = circuit_of([(1, 2)]).model_copy(update={"name": text})
        discovery = circuit.discovery.model_copy(update={"contrast": text, "leakage": text})
        model = circuit.model.model_copy(update={"id": text, "revision": text})
        output.print_intervention(circuit.model_copy(update={"discovery": discovery, "model": model}))
        assert_quiet(capsys.readouterr().out)


def test_what_is_logged_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("apart")
    logger.addHandler(output.Said())
    for text in ALL:
        logger.warning("judge: %s", text)
    assert_quiet(capsys.readouterr().err)


def test_the_command_in_a_manifest_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lm-eval-cna", "sweep", "--output", "a\udcffb", "--judge-model-args", "key=x"])
    assert output.typed_command() == [
        "lm-eval-cna",
        "sweep",
        "--output",
        "a?b",
        "--judge-model-args",
        "key=(not shown)",
    ]
