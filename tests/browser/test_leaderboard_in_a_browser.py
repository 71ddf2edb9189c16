"""The leaderboard in headless Chromium, opened from disk: it sorts, and is quiet whatever models are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.report.leaderboard import write_leaderboard
from tests.browser.test_report_in_a_browser import OWNED, Tab, browser, pytestmark  # noqa: F401
from tests.helpers.report_runs import rich_run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    runs = [rich_run(folder / "one", n=20, controls=2), rich_run(folder / "two", n=20, controls=2, shift=0.2)]
    manifest = runs[1].manifest()
    manifest["plan"]["model"] = OWNED
    runs[1].write_json("manifest.json", manifest)
    write_leaderboard(leaderboard(runs), folder)
    return folder / "leaderboard.html"


@pytest.fixture(params=(1280, 400))
def tab(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Tab]:  # noqa: F811
    opened = Tab(browser, file, viewport={"width": request.param, "height": 900})
    yield opened
    opened.close()


def test_it_sorts_and_stays_in_its_frame(tab: Tab) -> None:
    page = tab.page
    assert page.title() == "Leaderboard"
    rows = page.locator("tbody tr")
    assert rows.count() == 4
    head = page.locator("thead th").nth(2)
    for order, expected in (("ascending", sorted), ("descending", lambda ranks: sorted(ranks, reverse=True))):
        head.locator("button").click()
        ranks = [int(rows.nth(number).locator("td").nth(2).inner_text()) for number in range(4)]
        assert head.get_attribute("aria-sort") == order and ranks == expected(ranks)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("img").count() == 0 and page.get_by_text("document.title='owned'").count() > 0
