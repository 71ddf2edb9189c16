"""Both pages with hostile text in every place of theirs: the same elements as with harmless words, the texts as put in.

`tests/browser/test_hostile_in_a_browser.py` looks at the same pages in Chromium.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.report.charts import Panel
from lm_eval_cna.report.escape import plain, visible, writable
from lm_eval_cna.report.html import page
from lm_eval_cna.report.leaderboard import as_html
from lm_eval_cna.report.page import write_report
from lm_eval_cna.report.run import Run, read_runs
from lm_eval_cna.report.samples import LONGEST_TEXT, browser_data
from lm_eval_cna.report.sections import Contents, RunSections, contents
from lm_eval_cna.report.tables import Table
from lm_eval_cna.results.cells import BASELINE, Cell
from tests.helpers.report_runs import answer_metrics, plain_refusal, rich_run, write_run
from tests.helpers.rewriting import Swap, fours, rewritten
from tests.helpers.xss import ALL, BY_CLASS

#: As many harmless words, told apart by their numbers.
WORDS = tuple(f"word{number}word" for number in range(len(ALL)))
WORD = re.compile(r"word(\d+)word")


class Parts(HTMLParser):
    """A page taken apart: its elements with the names of their attributes, and everything that is text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.structure: list[tuple[str, ...]] = []
        self.texts = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.structure.append((tag, *(name for name, _ in attrs)))
        self.texts += [value or "" for _, value in attrs] + [""]

    def handle_endtag(self, tag: str) -> None:
        self.structure.append((f"/{tag}",))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.structure.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.structure.append(("declaration", decl))

    def unknown_decl(self, data: str) -> None:
        self.structure.append(("section", data))

    def handle_pi(self, data: str) -> None:
        self.structure.append(("instruction", data))


def filled(texts: list[str], given: list[str]) -> list[str]:
    """Texts of a page of words, with what stands for each word."""
    return [WORD.sub(lambda found: visible(given[int(found[1])]), text) for text in texts]


def trimmed(part: RunSections) -> RunSections:
    """A part with one thing of each kind: hundreds of them make one page."""

    def table(found: Table) -> Table:
        return replace(found, head=found.head[:2], rows=tuple(row[:2] for row in found.rows[:1]))

    def panel(found: Panel) -> Panel:
        series = tuple(replace(one, points=one.points[:1]) for one in found.series[:1])
        return replace(found, series=series, categories=found.categories[:1], x_range=(0, 0), y_range=(0, 0))

    ways = {"results": table, "shares": table, "metrics": panel, "outcomes": panel}
    kept = {name: tuple(map(way, getattr(part, name)[:1])) for name, way in ways.items()}
    kept |= {name: getattr(part, name)[:1] for name in ("headlines", "powers", "notes", "provenance")}
    assert all(kept.values())
    return replace(part, **kept)


def assert_same(harmless: str, hostile: str, given: list[str]) -> None:
    before, after = Parts(harmless), Parts(hostile)
    assert after.structure == before.structure
    assert after.texts == filled(before.texts, given)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("rich")
    return read_runs([rich_run(folder / name, n=20, controls=2) for name in ("one", "two")], DamageBudget())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    cells = (BASELINE, Cell("cna", 0.0))
    score = {"harm": plain_refusal(lambda cell, document: cell == BASELINE)}
    run = write_run(tmp_path_factory.mktemp("small") / "run", cells, score, n=10)
    return contents(read_runs([run], DamageBudget()))


def test_there_are_enough_strings_and_none_twice() -> None:
    assert len(ALL) == len(set(ALL)) >= 1500 and len(BY_CLASS) == 20
    assert min(map(len, BY_CLASS.values())) >= 30


@pytest.mark.parametrize(("first", "samples"), [(0, True), (600, True), (1200, False)])
def test_every_place_of_the_report(rich: list[Run], first: int, samples: bool) -> None:
    found, data = contents(rich, preface="Ours, with `code`."), browser_data(rich)
    words, strings = Swap(WORDS), Swap((*ALL[first:], *ALL[:first]))
    pages = []
    for swap in (words, strings):
        shown = rewritten(found, swap)
        pages.append(page(shown, rewritten(data, swap) if samples else None))
    given = list(strings.given.values())
    assert list(words.given) == list(strings.given) and len(given) > 500
    if samples:
        pages[0], pages[1] = (re.sub(r'(id="data">).*?(</script>)', r"\1\2", text, flags=re.DOTALL) for text in pages)
    assert_same(*pages, given)


def test_every_string_as_names_of_runs(small: Contents) -> None:
    """A page of many runs; each has other strings wherever a run has text, so that each string is in many places."""
    one, step = replace(small, parts=(trimmed(small.parts[0]),), layers=(), profile=None), 5
    places = Swap(WORDS)
    rewritten(one, places)
    assert len(places.given) >= 5 * step

    def of(texts: tuple[str, ...]) -> str:
        around = (*texts, *texts)
        parts = [rewritten(one, Swap(around[first : first + 100])).parts[0] for first in range(0, len(texts), step)]
        return page(replace(one, title="".join(texts), parts=tuple(parts)), None)

    assert_same(of(WORDS), of(ALL), list(ALL))


def test_every_string_in_every_place_of_the_leaderboard(rich: list[Run]) -> None:
    found = leaderboard([run.directory for run in rich])

    def of(texts: tuple[str, ...]) -> str:
        rows = tuple(rewritten(found.rows[0], Swap(four)) for four in fours(texts))
        return as_html(found.model_copy(update={"task": "".join(texts), "rows": rows, "notes": texts}))

    before, after = Parts(of(WORDS)), Parts(of(ALL))
    assert after.structure == before.structure
    # A table's texts are made plain before they are made visible, so a control character is a space there.
    expected = filled(before.texts, list(ALL))
    for shown, text in zip(after.texts, expected, strict=True):
        assert plain(shown.replace("\ufffd", " ")) == plain(text.replace("\ufffd", " "))


def test_prompts_and_answers_are_the_same_again(tmp_path: Path) -> None:
    def score(cell: Cell, document: int) -> dict[str, Any]:
        return {**answer_metrics(ALL[document]), "prompt": ALL[document], "text": ALL[-1 - document]}

    run = write_run(tmp_path / "run", (BASELINE, Cell("cna", 0.0)), {"harm": score}, n=len(ALL))
    runs = read_runs([run], DamageBudget())
    text = page(contents(runs), browser_data(runs))
    (shown,) = re.findall(r'<script type="application/json" id="data">([^<>&]*)</script>', text)
    data = json.loads(shown)
    (group,) = data["groups"]
    asked = [data["texts"][prompt] for prompt, _ in group["rows"]]
    answered = [data["texts"][answers[1][1]] for _, answers in group["rows"]]
    assert max(map(len, ALL)) < LONGEST_TEXT
    assert asked == [writable(text) for text in ALL] and answered == [writable(text) for text in reversed(ALL)]


def a_run(folder: Path, name: str, texts: tuple[str, ...]) -> str:
    """The page of a run whose folder, model, task, method, circuit, command and manifest are called such things."""

    def score(cell: Cell, document: int) -> dict[str, Any]:
        return {**answer_metrics("x"), "prompt": texts[document], "text": texts[document]}

    whole = [text.encode("utf-8", "ignore").decode() for text in texts]  # our own files cannot hold half a letter
    task, model, contrast, match, method = whole[:5]
    cells = (BASELINE, Cell("cna", 0.0), Cell(method, 0.0))
    plan = {"model": model, "contrast": contrast, "match": match}
    # Dots and brackets of a manifest's own names are read: keys of a mapping are joined by dots, empty ones left out.
    facts = {"command": ["lm-eval-cna", *texts], "machine": {f"{n} {text}": text for n, text in enumerate(texts)}}
    run = write_run(folder / name, cells, {task: score}, n=3, plan=plan, **facts)
    write_report([run], folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", range(0, len(ALL), 300))
def test_files_of_a_run_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
    method = "<img src=x onerror=alert(1)>"  # part of a folder's name, so without a slash
    texts = [*ALL[kind : kind + 4], method, *ALL[kind + 4 :: 7]]
    name = texts[0].replace("/", "\u2215").replace("\0", "0").encode("utf-8", "replace").decode()[:80]
    hostile = Parts(a_run(tmp_path / "hostile", name, tuple(texts)))
    harmless = Parts(a_run(tmp_path / "harmless", "run", tuple(WORDS[: len(texts)])))
    assert hostile.structure == harmless.structure
    shown = set(hostile.texts)
    assert {visible(text) for text in texts} <= shown, "the manifest is listed as it is"
