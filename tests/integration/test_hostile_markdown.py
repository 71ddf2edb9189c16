"""Hostile text in Markdown: report.md, leaderboard.md, paper.md and GitHub's step summary keep their shape."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lm_eval_cna.analysis.baseline import make_baseline
from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.regression import check_run
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.paper import page, rows
from lm_eval_cna.paper.result import Result, Skipped
from lm_eval_cna.report.check import summary
from lm_eval_cna.report.escape import code, fence, item, markdown, plain, writable
from lm_eval_cna.report.leaderboard import as_markdown
from lm_eval_cna.report.markdown import document
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.sections import contents
from lm_eval_cna.results.directory import RunDirectory
from tests.helpers.report_runs import rich_run
from tests.helpers.rewriting import Swap, fours, rewritten
from tests.helpers.xss import ALL

WORDS = tuple(f"word{number}word" for number in range(len(ALL)))
#: Those of which something is left when controls are taken out.
SHOWN = tuple(text for text in ALL if plain(text))
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
#: Pieces of a line that our own text has.
_PLAIN = {"text", "text_special", "code_inline", "strong_open", "strong_close", "image"}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return rich_run(tmp_path_factory.mktemp("rich") / "run", n=20, controls=2)


def blocks(text: str) -> list[tuple[str, int, tuple[str, ...]]]:
    """Markdown as a reader takes it apart: its blocks, their depth and what is in them, the texts left out."""
    found = []
    for token in PARSER.parse(text):
        inside = tuple(inner.type for inner in token.children or [] if not inner.type.startswith("text"))
        assert set(inside) <= _PLAIN and token.type != "html_block", text
        found.append((token.type, token.level, inside))
    return found


def shown(text: str) -> str:
    """A paragraph of Markdown as it is shown, without the spaces that keep addresses from being links."""
    (_, line, _) = PARSER.parse(text)
    return "".join(inner.content for inner in line.children or []).replace("\u200b", "")


def test_a_text_is_shown_as_it_was_and_is_neither_link_nor_mention() -> None:
    for text in ALL:
        made = markdown(text)
        assert shown(f"x{made}x") == f"x{plain(text)}x"
        read = html.unescape(re.sub(r"\\([^\w\s])", r"\1", made))
        assert not re.search(r"://|\bwww\.|@\w", read, re.IGNORECASE), ascii(text)


@pytest.mark.parametrize("place", ["# x {}", "| a |\n| --- |\n| {} |", "{item}"])
def test_a_text_begins_no_block(place: str) -> None:
    expected = blocks(place.replace("{item}", "- word").replace("{}", "word"))
    for text in SHOWN:
        assert blocks(place.replace("{item}", item(text)).replace("{}", markdown(text))) == expected, ascii(text)


def test_code_and_fences_end_where_they_end() -> None:
    for text in ALL:
        assert blocks(f"Model {code(text)}: x")[1] == ("inline", 1, ("code_inline",))
        (token,) = PARSER.parse(fence(text))
        assert token.type == "fence" and token.content.strip() == plain(text)


@pytest.mark.parametrize("first", range(0, len(SHOWN), 600))
def test_the_report(rich: RunDirectory, first: int) -> None:
    found = contents(read_runs([rich], DamageBudget()))
    figures = {"run": ["figures/a b)c.png"], "layers": ["figures/<x>.png"]}
    made = [document(rewritten(found, Swap(texts)), figures) for texts in (WORDS, (*SHOWN[first:], *SHOWN[:first]))]
    assert blocks(made[1]) == blocks(made[0])


def test_the_step_summary_of_a_check(rich: RunDirectory) -> None:
    found = check_run(rich, make_baseline(rich))
    (finding, *_) = found.findings
    names = ("cell", "task", "metric", "text")
    findings = tuple(finding.model_copy(update=dict(zip(names, four, strict=True))) for four in fours(ALL))
    named = dict.fromkeys(("run", "model", "against"), "".join(ALL))
    made = summary(found.model_copy(update={"findings": findings, "notes": SHOWN, **named}))
    kinds = Counter(kind for kind, *_ in blocks(made))
    assert kinds["heading_open"] == kinds["table_open"] == 1 and kinds["list_item_open"] == len(SHOWN)
    assert kinds["tr_open"] == len(findings) + 1 and kinds["td_open"] == len(findings) * kinds["th_open"]
    assert kinds["inline"] == 1 + len(SHOWN) + kinds["th_open"] + kinds["td_open"]


def test_the_leaderboard(rich: RunDirectory) -> None:
    found = leaderboard([rich])
    names = ("model", "run", "method", "capability_task")
    row = found.rows[0]
    ranked = tuple(row.model_copy(update=dict(zip(names, four, strict=True))) for four in fours(ALL))
    kinds = Counter(kind for kind, *_ in blocks(as_markdown(found.model_copy(update={"rows": ranked, "notes": ALL}))))
    assert kinds["heading_open"] == kinds["table_open"] == 1 and kinds["list_item_open"] == len(ALL) + 3
    assert kinds["tr_open"] == len(ranked) + 1 and kinds["td_open"] == len(ranked) * kinds["th_open"]


def test_the_papers_page(tmp_path: Path) -> None:
    texts = [writable(text) for text in SHOWN]  # what comes from a command line is made so
    found = [rows.row(*four[:3], rows.figure(30), rows.rate([0.0, 1.0]), (four[3],)) for four in fours(texts)]
    result = Result(
        table="t", title="T", protocol="corrected", statement="s", published=("p",), ours=("o",), rows=tuple(found),
        skipped=tuple(Skipped(model=text, why=text) for text in texts), command=tuple(texts), created="now",
    )  # fmt: skip
    page.write_result(result, tmp_path)
    kinds = Counter(kind for kind, *_ in blocks((tmp_path / "paper.md").read_text("utf-8")))
    assert kinds["tr_open"] == len(found) + 1 and kinds["td_open"] == len(found) * len(page.HEAD)
    assert kinds["list_item_open"] == len(texts) + 2 and kinds["heading_open"] == kinds["table_open"] == 1
    assert Result.model_validate_json((tmp_path / "paper.json").read_bytes()) == result
