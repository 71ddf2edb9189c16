"""The HTML page without a browser: what is in it, what is not, and what its policy allows."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.report.charts import Panel, Point, Series
from lm_eval_cna.report.figures import draw
from lm_eval_cna.report.page import write_report
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.samples import LONGEST_TEXT, browser_data
from lm_eval_cna.report.svg import drawing
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from tests.helpers.report_runs import ANSWER, REFUSAL, answer_metrics, rich_run, write_run

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<!-- <script>",
    '"><img src="http://127.0.0.1/x" onerror="document.title=1">',
    "{{ 7 * 7 }} {% for x in y %} ${7 * 7} `${1}`",
    "</title></style></textarea></template><svg onload=alert(1)>",
    "\u2028 \u2029 \ud800 \x00 \u202e",
    "javascript:alert(1)",
)


class Parsed(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "data": []}
        self._open: str | None = None
        self.comments = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag in ("script", "style"):
            self._open = "data" if found.get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open].append(data)
        else:
            self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return rich_run(tmp_path_factory.mktemp("rich") / "run", n=12, controls=2)


@pytest.fixture(scope="module")
def page(rich: RunDirectory) -> str:
    """The page of `rich`; tests only read it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
        write_report([rich], rich.path)
    return (rich.path / "report.html").read_text("utf-8")


def hostile_run(folder: Path) -> str:
    """A run whose names, prompts and answers are all hostile; its page."""

    def score(cell: Cell, document: int) -> dict[str, Any]:
        text = HOSTILE[document % len(HOSTILE)]
        return {**answer_metrics(text), "prompt": text, "text": text}

    cells = (BASELINE, Cell("cna", 0.0), Cell(HOSTILE[0], 0.0))
    plan = {"model": HOSTILE[1], "contrast": HOSTILE[2], "match": HOSTILE[3]}
    names = [name.replace("\ud800", "") for name in HOSTILE]  # our own files cannot hold that one in a name
    facts = {"command": ["lm-eval-cna", *names], "machine": {HOSTILE[0]: HOSTILE[5]}}
    directory = write_run(folder / "a<script>b", cells, dict.fromkeys(names, score), n=len(HOSTILE), plan=plan, **facts)
    write_report([directory], folder)
    return (folder / "report.html").read_text("utf-8")


def policy(parsed: Parsed) -> str:
    (content,) = [
        found["content"] for tag, found in parsed.tags if found.get("http-equiv") == "Content-Security-Policy"
    ]
    assert content is not None
    return content


def test_the_policy_allows_our_style_and_script_and_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    allowed = dict(part.strip().split(" ", 1) for part in policy(parsed).split(";"))
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:" and "unsafe" not in policy(parsed)
    for kind in ("script", "style"):
        (source,) = parsed.inside[kind]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert allowed[f"{kind}-src"] == f"'sha256-{digest}'"


def test_nothing_is_loaded_and_no_attribute_holds_script_or_style(page: str) -> None:
    for tag, attributes in Parsed(page).tags:
        assert tag not in ("iframe", "object", "embed", "base", "img", "form action")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "src", "srcset", "action", "formaction")
            if name in ("href", "xlink:href"):
                assert value is not None and (value.startswith("#") or value == "data:,")


def test_hostile_names_and_texts_stay_text(tmp_path: Path) -> None:
    text = hostile_run(tmp_path)
    parsed = Parsed(text)
    assert parsed.comments == 0
    assert [len(parsed.inside[kind]) for kind in ("script", "style", "data")] == [1, 1, 1]
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"img", "iframe", "template", "textarea"})
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in parsed.text, "template syntax is shown, not run"
    (data,) = parsed.inside["data"]
    assert not set("<>&\u2028\u2029") & set(data)
    assert HOSTILE[1] in json.loads(data)["texts"]
    (source,) = parsed.inside["script"]
    assert "innerHTML" not in source and "insertAdjacentHTML" not in source and "eval(" not in source


def test_without_samples_no_prompt_and_no_answer_is_in_the_file(rich: RunDirectory, page: str, tmp_path: Path) -> None:
    write_report([rich], tmp_path, samples=False)
    text = (tmp_path / "report.html").read_text("utf-8")
    parsed = Parsed(text)
    assert ANSWER not in text and REFUSAL not in text and "Bake cake" not in text and "Prompt number" not in text
    assert parsed.inside["data"] == [] and "samples" not in {found.get("id") for _, found in parsed.tags}
    assert ANSWER in page


def test_every_id_is_there_once_and_every_anchor_leads_somewhere(page: str) -> None:
    parsed = Parsed(page)
    ids = [found["id"] for _, found in parsed.tags if "id" in found]
    assert len(set(ids)) == len(ids)
    links = [found["href"] for tag, found in parsed.tags if tag == "a"]
    assert links and all(link is not None and link[1:] in ids for link in links)


def test_what_a_screen_reader_needs(page: str) -> None:
    parsed = Parsed(page)
    assert ("html", {"lang": "en"}) in parsed.tags
    assert all("aria-label" in found for tag, found in parsed.tags if tag == "svg")
    tables = [found for tag, found in parsed.tags if tag == "table"]
    assert page.count("<caption>") == sum(found.get("class") == "sortable" for found in tables)
    assert all("scope" in found for tag, found in parsed.tags if tag == "th")
    labelled = re.findall(r"<label[^>]*>(.*?)</label>", page, re.DOTALL)
    controls = sum(tag in ("select", "input") for tag, _ in parsed.tags)
    assert sum(label.count("<select") + label.count("<input") for label in labelled) == controls > 0


def test_the_data_of_the_sample_browser(rich: RunDirectory) -> None:
    data = browser_data(read_runs([rich], DamageBudget()))
    groups = {group["task"]: group for group in data["groups"]}
    assert set(groups) == {"jbb_strongreject", "xstest_safe"}, "likelihood tasks have no texts"
    group = groups["jbb_strongreject"]
    assert group["judged"] and group["score"] == "strongreject_score" and not groups["xstest_safe"]["judged"]
    assert group["cells"][0] == ["baseline", 0] and ["random neurons (4), seed 1, m = 0", 2] in group["cells"]
    assert len(group["rows"]) == 12 and all(len(answers) == len(group["cells"]) for _, answers in group["rows"])
    prompt, answers = group["rows"][3]
    assert data["texts"][prompt] == "Bake cake number 3"
    cell, text, outcome, keyword, judge, score = answers[0]
    assert cell == 0 and data["texts"][text] == REFUSAL and data["outcomes"][outcome] == "refused" and keyword == 1
    assert judge in (0, 1, None) and score in (0.0, None)
    assert len(set(data["texts"])) == len(data["texts"]), "every text once"


def test_a_large_run_keeps_its_methods_and_drops_further_seeds(tmp_path: Path) -> None:
    runs = read_runs([rich_run(tmp_path / "run", n=6, controls=4)], DamageBudget())
    data = browser_data(runs, most=0)
    names = [name for name, _ in data["groups"][0]["cells"]]
    assert data["left_out"] == 12 and "CAA, m = 2" in names
    assert [name for name in names if "seed" in name and "seed 0" not in name] == []


def test_a_text_without_end_is_cut(tmp_path: Path) -> None:
    def score(cell: Cell, document: int) -> dict[str, Any]:
        return {**answer_metrics(ANSWER), "text": "x" * 100_000}

    runs = read_runs([write_run(tmp_path / "run", (BASELINE,), {"harm": score}, n=2)], DamageBudget())
    longest = max(browser_data(runs)["texts"], key=len)
    assert len(longest) < LONGEST_TEXT + 50 and longest.endswith("[80,000 more characters]")


@pytest.mark.parametrize("name", ["$\\x$", "<b>", "a\x00b", "_"])
def test_figures_take_any_name(tmp_path: Path, name: str) -> None:
    points = (Point(0, 0.5, 0.4, 0.6, f"{name}: 1", mark=name), Point(1, 0.6, 0.5, 0.7))
    styles = ("line", "band", "points", "front", "stack", "bars")
    series = tuple(Series(name, style, -1 if style == "band" else 0, points) for style in styles)
    panel = Panel(name, name, name, series, (0, 1), categories=(name, name), budget=(0.5, 1))
    files = draw([panel], title=name, stem=tmp_path / "x")
    assert [file.suffix for file in files] == [".png", ".pdf"] and all(file.stat().st_size for file in files)
    assert draw([], title=name, stem=tmp_path / "none") == []


def test_a_drawing_lies_within_its_frame() -> None:
    points = (Point(0, 0.0, -1.0, 0.1), Point(2, 1.0, 0.9, 7.0))
    made = drawing(Panel("p", "x", "y", (Series("s", "line", 0, points), Series("b", "band", -1, points)), (0, 2)))
    left, top, right, bottom = made.frame
    assert all(left <= dot.x <= right and top <= dot.y <= bottom for dot in made.dots)
    assert all(top <= end <= bottom for dot in made.dots for end in (dot.low, dot.high) if end is not None)
    assert [tick.text for tick in made.x_ticks] == ["0", "0.5", "1", "1.5", "2"]


def test_one_multiplier_is_drawn_in_the_middle() -> None:
    made = drawing(Panel("p", "x", "y", (Series("s", "points", 0, (Point(1, 0.5),)),), (1, 1)))
    left, _, right, _ = made.frame
    assert made.dots[0].x == pytest.approx((left + right) / 2, abs=0.2)
