"""Hostile text in headless Chromium: it stays text, and where escaping had failed, the page's policy would hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.report.escape import writable
from lm_eval_cna.report.html import page
from lm_eval_cna.report.leaderboard import as_html
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.samples import browser_data
from lm_eval_cna.report.sections import contents
from lm_eval_cna.results.cells import BASELINE, Cell
from tests.browser.test_report_in_a_browser import Tab, browser, pytestmark  # noqa: F401
from tests.helpers.report_runs import answer_metrics, rich_run, write_run
from tests.helpers.rewriting import Swap, fours, rewritten
from tests.helpers.xss import ALL

WORDS = tuple(f"word{number}word" for number in range(len(ALL)))

#: Everything that a reader can click, open or point at, and then what the page has become.
USE_AND_DESCRIBE = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seeds = document.getElementById("seeds");
  if (seeds) {
    seeds.click();
    const group = document.getElementById("group");
    for (const option of [...group.options].reverse()) {
      group.value = option.value;
      group.dispatchEvent(new Event("change"));
      while (!document.getElementById("more").hidden) document.getElementById("more").click();
      all("#rows button").forEach((button) => button.click());
    }
  }
  all("details").forEach((details) => { details.open = true; });
  all("th button").forEach((button) => { button.click(); });
  all("*").forEach((element) => {
    const kinds = ["mouseover", "pointerenter", "focus", "toggle", "error", "load"];
    kinds.forEach((kind) => element.dispatchEvent(new Event(kind)));
  });
  const sorted = all("table.sortable tbody");
  return {
    structure: all("*").map((element) => {
      if (sorted.some((body) => body.contains(element) && body !== element)) return "";
      return [element.namespaceURI, element.tagName, ...[...element.attributes].map(({name}) => name)].join(" ");
    }),
    count: all("*").length,
    comments: document.createNodeIterator(document, NodeFilter.SHOW_COMMENT).nextNode() === null,
    globals: Object.keys(window).concat(Object.getOwnPropertyNames(window)).sort(),
    prompts: all("#rows .prompt").map((element) => element.textContent),
    answers: all("#rows .answer:first-child .text").map((element) => element.textContent),
    owned: window.__xss,
    title: document.title,
    address: location.href,
  };
}"""


def used(browser: Any, file: Path) -> dict[str, Any]:  # noqa: F811
    """What a page has become when everything on it was used; it must have been quiet."""
    tab = Tab(browser, file, viewport={"width": 1280, "height": 900})
    dialogs: list[str] = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    found: dict[str, Any] = tab.page.evaluate(USE_AND_DESCRIBE)
    tab.page.wait_for_timeout(300)
    assert len(tab.context.pages) == 1 and tab.page.url == tab.address == found["address"]
    assert tab.page.evaluate("window.__xss") is None is found["owned"] and dialogs == []
    tab.close()
    return found


def test_the_report_and_its_samples(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    """Every string is a prompt and an answer, and stands at some place of the page."""

    def score(cell: Cell, document: int) -> dict[str, Any]:
        metrics = answer_metrics(ALL[document])
        return {**metrics, "prompt": ALL[document], "text": ALL[document] if cell == BASELINE else "x"}

    directories = [
        write_run(tmp_path / "all", (BASELINE, Cell("cna", 0.0)), {"harm": score}, n=len(ALL)),
        rich_run(tmp_path / "rich", n=10, controls=2),
    ]
    runs = read_runs(directories, DamageBudget())
    found, data, made = contents(runs), browser_data(runs), {}
    found = replace(found, parts=tuple(replace(part, notes=(*part.notes, *WORDS)) for part in found.parts))
    for name, texts in (("words", WORDS), ("hostile", ALL)):
        swap = Swap(texts)
        groups = rewritten(data["groups"], swap)
        samples = {
            **data,
            "groups": groups,
            "texts": data["texts"] if name == "hostile" else ["word"] * len(data["texts"]),
        }
        (tmp_path / f"{name}.html").write_text(page(rewritten(found, swap), samples), encoding="utf-8")
        made[name] = used(browser, tmp_path / f"{name}.html")
    words, hostile = made["words"], made["hostile"]
    for what in ("structure", "count", "comments", "globals"):
        assert hostile[what] == words[what], what
    shown = [writable(text) for text in ALL]
    assert hostile["prompts"] == shown and hostile["answers"] == shown


def test_the_leaderboard(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    found, made = leaderboard([rich_run(tmp_path / "rich", n=10, controls=2)]), {}
    for name, texts in (("words", WORDS), ("hostile", ALL)):
        rows = tuple(rewritten(found.rows[0], Swap(four)) for four in fours(texts))
        board = found.model_copy(update={"task": "".join(texts), "rows": rows, "notes": texts})
        (tmp_path / f"{name}.html").write_text(as_html(board), encoding="utf-8")
        made[name] = used(browser, tmp_path / f"{name}.html")
    for what in ("structure", "count", "comments", "globals", "title"):
        assert made["hostile"][what] == made["words"][what], what


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server of this machine that counts who asks, and would answer with a script."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            kind = "text/html" if self.path.endswith("html") else "text/javascript"
            self.send_header("Content-Type", kind)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(b"window.__xss = (window.__xss || 0) + 1;")

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    # A thread each: Chromium opens connections ahead, and says nothing on some.
    opened = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=opened.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{opened.server_port}", asked
    opened.shutdown()
    thread.join()
    opened.server_close()


#: What a text could do were it not escaped: (markup, the directive that stops it).
INJECTED = (
    ("<script>window.__xss = 1</script>", "script-src-elem"),
    ("<script src=AT/remote.js></script>", "script-src-elem"),
    ("<script type=module src=AT/module.js></script>", "script-src-elem"),
    ("<script nonce=x>window.__xss = 1</script>", "script-src-elem"),
    ("<img src=data:, onerror='window.__xss = 1'>", "script-src-attr"),
    ("<svg onload='window.__xss = 1'></svg>", "script-src-attr"),
    ("<a id=run href='javascript:window.__xss = 1'>x</a>", "script-src-elem"),
    ("<img src=AT/beacon.png>", "img-src"),
    ("<img srcset='AT/beacon2.png 1x'>", "img-src"),
    ("<video poster=AT/poster.png src=AT/film.mp4></video>", "media-src"),
    ("<style>body { background: url(AT/style.png) }</style>", "style-src-elem"),
    ("<style>@import 'AT/import.css';</style>", "style-src-elem"),
    ("<p style='background: url(AT/attribute.png)'>x</p>", "style-src-attr"),
    ("<link rel=stylesheet href=AT/sheet.css>", "style-src-elem"),
    ("<link rel=manifest href=AT/manifest.json>", None),
    ("<iframe src=AT/frame.html></iframe>", "frame-src"),
    ("<iframe srcdoc='<script>parent.__xss = 1</script>'></iframe>", "script-src-elem"),
    ("<object data=AT/object.html></object>", "object-src"),
    ("<embed src=AT/embed.html>", "object-src"),
    ("<base href=AT/>", "base-uri"),
    ("<form id=send action=AT/form><input name=x value=y></form>", "form-action"),
)
#: What a script could do, had one run: whether it did.
ATTEMPTS = """async (at) => {
  const works = async (attempt) => { try { await attempt(); return true; } catch { return false; } };
  document.getElementById("run").click();
  document.getElementById("send").submit();
  const div = document.createElement("div");
  return {
    fetch: await works(() => fetch(`${at}/fetch`)),
    markup: await works(() => { div.innerHTML = "<b>x</b>"; }),
    write: await works(() => document.write("x")),
    inserted: await works(() => {
      const made = document.createElement("script");
      made.src = `${at}/made.js`;
      document.body.append(made);
    }),
    worker: await works(() => new Worker(`${at}/worker.js`)),
    base: document.baseURI,
  };
}"""


def broken_into(file: Path, at: str, *, policy: bool) -> Callable[[Any], tuple[dict[str, Any], set[str], Any]]:
    """Make a page into which markup got unescaped, with its policy or without; what opens it and tries everything."""
    text = file.read_text(encoding="utf-8")
    injected = "".join(markup for markup, _ in INJECTED).replace("AT", at)
    head, mark, tail = text.partition("<main")
    assert mark and 'http-equiv="Content-Security-Policy"' in head.partition("<title>")[0], "it is in force at once"
    text = f"{head}{injected}{mark}{tail}"
    made = file.with_name(f"broken-{policy}.html")
    made.write_text(text if policy else text.replace("Content-Security-Policy", "x-nothing"), encoding="utf-8")

    def tried(browser: Any) -> tuple[dict[str, Any], set[str], Any]:  # noqa: F811
        tab = browser.new_page()
        tab.set_default_timeout(20_000)
        tab.add_init_script(
            "window.stopped = [];"
            "addEventListener('securitypolicyviolation', (event) => stopped.push(event.effectiveDirective))"
        )
        tab.goto(made.as_uri())
        tab.wait_for_timeout(300)
        attempts = {} if not policy else tab.evaluate(ATTEMPTS, at)
        tab.wait_for_timeout(500)
        assert not policy or tab.url == made.as_uri(), "the form went nowhere"
        found = attempts, set(tab.evaluate("window.stopped")), tab.evaluate("window.__xss")
        tab.close()
        return found

    return tried


@pytest.mark.parametrize("kind", ["report", "leaderboard"])
def test_the_policy_holds_where_escaping_failed(
    browser: Any,  # noqa: F811
    tmp_path: Path,
    server: tuple[str, list[str]],
    kind: str,
) -> None:
    at, asked = server
    run, file = rich_run(tmp_path / "rich", n=10, controls=2), tmp_path / "page.html"
    if kind == "report":
        runs = read_runs([run], DamageBudget())
        file.write_text(page(contents(runs), browser_data(runs)), encoding="utf-8")
    else:
        file.write_text(as_html(leaderboard([run])), encoding="utf-8")
    attempts, stopped, owned = broken_into(file, at, policy=True)(browser)
    assert asked == [] and owned is None
    assert {directive for _, directive in INJECTED if directive} <= stopped
    assert attempts.pop("base").startswith("file:")
    assert attempts.pop("inserted") in (True, False)  # an element may be there; nobody was asked for its script
    assert not any(attempts.values()), attempts
    # The same page without its policy does all of it, so that the above could have failed.
    _, stopped, owned = broken_into(file, at, policy=False)(browser)
    assert stopped == set() and owned
    assert {"/remote.js", "/beacon.png", "/style.png", "/frame.html"} <= set(asked)
