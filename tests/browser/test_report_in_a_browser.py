"""The report in headless Chromium, opened from disk: filters, tables, answers; no console error, no request.

`make browser` installs what this needs. Without Playwright or Chromium the tests skip and say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.report.page import write_report
from lm_eval_cna.results.cells import BASELINE, Cell
from tests.helpers.report_runs import ANSWER, REFUSAL, answer_metrics, rich_run, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: run `make browser`")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: run `make browser` as root")

OWNED = (
    "</script><script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\">"
)


class Tab:
    """A page with everything that it asked for and complained about."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(file.as_uri())
        self.address = file.as_uri()

    def close(self) -> None:
        """End the tab; it must have been quiet."""
        self.context.close()
        assert self.complaints == []
        assert [url for url in self.requests if url != self.address and not url.startswith("data:")] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # A container's root has no user namespaces for Chromium's own sandbox; the page is ours and offline.
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")

    def hostile(cell: Cell, document: int) -> dict[str, Any]:
        return {**answer_metrics(OWNED), "prompt": f"{document} {OWNED}", "text": OWNED}

    runs = [
        rich_run(folder / "rich", n=30, controls=2),
        write_run(folder / "hostile", (BASELINE, Cell("cna", 0.0)), {OWNED: hostile}, n=3, plan={"model": OWNED}),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
        write_report(runs, folder)
        write_report(runs[:1], folder / "without", samples=False)
    return folder


@pytest.fixture
def tab(browser: Any, folder: Path) -> Iterator[Tab]:
    opened = Tab(browser, folder / "report.html", viewport={"width": 1280, "height": 900})
    yield opened
    opened.close()


def shown(tab: Tab) -> list[str]:
    return [text.strip() for text in tab.page.locator("#rows .prompt").all_inner_texts()]


def test_it_opens_quietly(tab: Tab) -> None:
    assert tab.page.title() == "What steering does"
    assert tab.page.locator("#verdicts .verdicts li").first.is_visible()
    assert tab.page.locator("#count").inner_text() == "30 of 30 prompts"


def test_answers_are_hidden_until_asked_for(tab: Tab) -> None:
    assert tab.page.get_by_text(ANSWER).count() == 0 and tab.page.get_by_text(REFUSAL).count() == 0
    button = tab.page.locator("#rows button").first
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    cells = tab.page.locator("#rows li").first.locator(".answer")
    assert cells.count() == 13, "baseline, two sizes of CNA and CAA at four multipliers"
    assert cells.first.locator("h4").inner_text() == "baseline"
    assert REFUSAL in cells.first.inner_text() and button.get_attribute("aria-expanded") == "true"
    button.click()
    assert tab.page.locator(".answer").count() == 0


def test_filters(tab: Tab) -> None:
    page = tab.page
    page.fill("#search", "number 7")
    assert shown(tab) == ["Bake cake number 7"]
    page.fill("#search", "")
    page.select_option("#cell", label="baseline")
    page.select_option("#outcome", label="complied")
    complied = shown(tab)
    page.select_option("#outcome", label="refused")
    refused = page.locator("#count").inner_text()
    assert 0 < len(complied) < 30 and refused == f"{30 - len(complied)} of 30 prompts"
    page.select_option("#cell", label="CNA (4), m = 0")
    page.select_option("#outcome", label="other than the baseline's")
    page.locator("#rows button").first.click()
    first = page.locator("#rows li").first
    heading = tab.page.get_by_role("heading", name="CNA (4), m = 0", exact=True)
    tags = first.locator(".answer", has=heading).locator(".tags").inner_text()
    assert not tags.startswith("refused") and first.locator(".tags").first.inner_text().startswith("refused")


def test_disagreement_between_keyword_and_judge(tab: Tab) -> None:
    tab.page.check("#disagreement")
    tab.page.select_option("#cell", label="baseline")
    found = shown(tab)
    assert 0 < len(found) < 15
    tab.page.locator("#rows button").first.click()
    assert "keyword: " in tab.page.locator(".answer .tags").first.inner_text()
    tab.page.select_option("#group", label="rich: xstest_safe")
    assert tab.page.locator("#disagreement").is_disabled(), "nobody judged that task"


def test_control_seeds_when_asked_for(tab: Tab) -> None:
    assert tab.page.locator("#cell option", has_text="seed").count() == 0
    tab.page.check("#seeds")
    assert tab.page.locator("#cell option", has_text="random neurons (4), seed 1, m = 0").count() == 1
    tab.page.locator("#rows button").first.click()
    assert tab.page.locator("#rows li").first.locator(".answer").count() == 13 + 8


def test_more_prompts(tab: Tab) -> None:
    assert len(shown(tab)) == 20
    tab.page.click("#more")
    assert len(shown(tab)) == 30 and tab.page.locator("#more").is_hidden()


def test_tables_sort_by_value_and_blanks_stay_below(tab: Tab) -> None:
    table = tab.page.locator(
        "table.sortable", has=tab.page.locator("caption", has_text="jbb_strongreject: value")
    ).first
    head = table.locator("thead th", has_text="refusal_rate").first
    column = table.locator("thead th").all_inner_texts().index(head.inner_text())

    def values() -> list[float]:
        texts = table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
        return [float(text.split(" %")[0]) for text in texts]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and values() == sorted(values())
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending" and values() == sorted(values(), reverse=True)
    p = table.locator("thead th", has_text="controls").first
    for _ in range(2):
        p.locator("button").click()
        number = table.locator("thead th").all_inner_texts().index(p.inner_text())
        texts = table.locator(f"tbody tr > :nth-child({number + 1})").all_inner_texts()
        filled = [bool(text) for text in texts]
        assert filled == sorted(filled, reverse=True) and any(filled)


def test_by_keyboard_alone(tab: Tab) -> None:
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == "Skip to the report"
    tab.page.locator("#rows button").first.focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.locator(".answer").count() == 13


def test_hostile_texts_are_shown_as_text(tab: Tab) -> None:
    tab.page.select_option("#group", index=2)
    assert [text[2:] for text in shown(tab)] == [OWNED] * 3
    tab.page.locator("#rows button").first.click()
    assert tab.page.locator(".answer .text").first.inner_text() == OWNED
    assert tab.page.title() == "What steering does" and tab.page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_can_be_read(browser: Any, folder: Path, scheme: str, width: int) -> None:
    tab = Tab(browser, folder / "report.html", viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out to the side"
    for selector in ("body", ".hint", ".badge", ".verdicts li", "caption", "summary", ".warning"):
        ratio = tab.page.evaluate(CONTRAST, selector)
        assert ratio >= 4.5, f"{selector}: contrast {ratio:.2f} in {scheme}"
    tab.close()


def test_it_prints(tab: Tab) -> None:
    tab.page.emulate_media(media="print")
    assert tab.page.locator("#samples").is_hidden() and tab.page.locator("#verdicts").is_visible()
    assert tab.page.pdf().startswith(b"%PDF")


def test_without_samples(browser: Any, folder: Path) -> None:
    tab = Tab(browser, folder / "without" / "report.html")
    assert tab.page.locator("#samples").count() == 0 and "Bake cake" not in tab.page.content()
    tab.close()


def test_without_script_everything_but_the_samples_is_there(browser: Any, folder: Path) -> None:
    tab = Tab(browser, folder / "report.html", java_script_enabled=False)
    assert (
        tab.page.locator("table.sortable").filter(visible=True).count() > 2
        and tab.page.locator("svg").first.is_visible()
    )
    tab.close()


#: WCAG's contrast ratio of an element's text against the nearest background that is painted.
CONTRAST = """(selector) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  let behind = element;
  const painted = (node) => (([, , , a]) => a === undefined || a > 0)(numbers(getComputedStyle(node).backgroundColor));
  while (behind.parentElement && !painted(behind)) behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
