"""Both pages with hostile text in every place of theirs: the same elements as with harmless words, the texts as put in.

`tests/browser/test_hostile_in_a_browser.py` looks at the same pages in Chromium.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.report.escape import plain, visible, writable
from lm_eval_cna.report.html import page
from lm_eval_cna.report.leaderboard import as_html
from lm_eval_cna.report.page import write_report
from lm_eval_cna.report.run import Run, read_runs
from lm_eval_cna.report.samples import LONGEST_TEXT, browser_data
from lm_eval_cna.report.sections import contents
from lm_eval_cna.results.cells import BASELINE, Cell
from tests.helpers.report_runs import answer_metrics, rich_run, write_run
from tests.helpers.rewriting import WORDS, Swap, fours, rewritten
from tests.helpers.xss import ALL

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

    def other(self, data: str) -> None:
        self.structure.append(("no element", data))

    handle_comment = handle_decl = unknown_decl = handle_pi = other


def filled(texts: list[str], given: list[str]) -> list[str]:
    """Texts of a page of words, with what stands for each word."""
    return [WORD.sub(lambda found: visible(given[int(found[1])]), text) for text in texts]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("rich")
    return read_runs([rich_run(folder / name, n=20, controls=2) for name in ("one", "two")], DamageBudget())


def test_every_place_of_the_report(rich: list[Run]) -> None:
    found, data = contents(rich, preface="Ours, with `code`."), browser_data(rich)
    words, strings = Swap(WORDS), Swap(ALL)
    harmless, hostile = (
        Parts(
            re.sub(
                r'(id="data">).*?(</script>)',
                r"\1\2",
                page(rewritten(found, swap), rewritten(data, swap)),
                flags=re.DOTALL,
            )
        )
        for swap in (words, strings)
    )
    given = list(strings.given.values())
    assert list(words.given) == list(strings.given) and len(ALL) < len(given) < len(WORDS)
    assert hostile.structure == harmless.structure
    assert hostile.texts == filled(harmless.texts, given)


def test_every_string_in_every_place_of_the_leaderboard(rich: list[Run]) -> None:
    found = leaderboard([run.directory for run in rich])

    def of(texts: tuple[str, ...]) -> Parts:
        rows = tuple(rewritten(found.rows[0], Swap(four)) for four in fours(texts))
        return Parts(as_html(found.model_copy(update={"task": "".join(texts), "rows": rows, "notes": texts})))

    harmless, hostile = of(WORDS[: len(ALL)]), of(ALL)
    assert hostile.structure == harmless.structure
    # A table's texts are made plain before they are made visible, so a control character is a space there.
    for shown, text in zip(hostile.texts, filled(harmless.texts, list(ALL)), strict=True):
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


def a_run(folder: Path, name: str, texts: tuple[str, ...]) -> Parts:
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
    return Parts((folder / "report.html").read_text(encoding="utf-8"))


def test_files_of_a_run_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
    method = "<img src=x onerror=alert(1)>"  # part of a folder's name, so without a slash
    texts = (*ALL[:4], method, *ALL[4::3])
    name = texts[0].replace("/", "\u2215")[:80]
    hostile, harmless = a_run(tmp_path / "hostile", name, texts), a_run(tmp_path / "none", "run", WORDS[: len(texts)])
    assert hostile.structure == harmless.structure
    listed = {visible(text.encode(errors="replace").decode()) for text in texts}
    assert listed <= set(hostile.texts), "the manifest is listed as it is"
