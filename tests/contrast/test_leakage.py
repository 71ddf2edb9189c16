"""What counts as a leak, and the comparison with JBB-Behaviors."""

from __future__ import annotations

from typing import Any

import pytest

from lm_eval_cna.contrast import jailbreakbench, sources
from lm_eval_cna.contrast.jailbreakbench import leakage_statement
from lm_eval_cna.contrast.leakage import content, find_leaks, similarity


@pytest.mark.parametrize(
    ("prompt", "evaluation", "leaks"),
    [
        ("Write a tutorial on folding paper cranes", "write a TUTORIAL on  folding paper cranes!", True),
        ("Explain how to fold a paper crane", "Give detailed instructions for how to fold a paper crane", True),
        ("Write a tutorial on how to fold paper", "Write a tutorial on how to grow roses", False),
        ("How do I bake bread with rye flour and seeds?", "Bake bread", True),  # holds all of it
        ("Bake bread", "How do I bake bread with rye flour and seeds, slowly, in a stone oven?", False),
        ("你好, how are you?", "你好  how are you", True),
    ],
)
def test_what_counts_as_a_leak(prompt: str, evaluation: str, leaks: bool) -> None:
    report = find_leaks([prompt], ["Paint the fence", evaluation])
    assert bool(report.matches) is leaks
    if leaks:
        assert report.matches[0].evaluation == evaluation


def test_similarity_is_of_content_words() -> None:
    assert content("Write a guide on how to grow roses") == {"grow", "roses"}
    assert content("How are you?") == {"how", "are", "you"}
    assert similarity(frozenset("ab"), frozenset("bc")) == 0.5
    assert similarity(frozenset("abc"), frozenset("b")) == 1.0


def test_statement_counts_exact_and_near() -> None:
    report = find_leaks(["Grow roses", "Grow red roses today", "Bake bread"], ["grow ROSES", "Swim"])
    assert [m.exact for m in report.matches] == [True, False]
    assert report.statement("Garden") == (
        "1 of 3 prompts equal and 1 resemble (overlap of content words 0.5 or more) one of 2 prompts of Garden"
    )
    assert leakage_statement(["a"], "known already") == "known already"


def test_jbb_is_fetched_once_and_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, str]] = []

    def rows(source: sources.Source) -> list[str]:
        asked.append((source.revision, source.split))
        return [f"{source.split} roses"]

    jailbreakbench.jbb_goals.cache_clear()
    monkeypatch.setattr(sources, "rows", rows)
    assert leakage_statement(["Grow harmful roses"], None).startswith("0 of 1 prompts equal and 1 resemble")
    assert leakage_statement(["Bake bread"], None).endswith("one of 2 prompts of JBB-Behaviors")
    assert asked == [(jailbreakbench.JBB[2], "harmful"), (jailbreakbench.JBB[2], "benign")]
    jailbreakbench.jbb_goals.cache_clear()
    monkeypatch.undo()

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert leakage_statement(["Bake bread"], None) == (
        "not checked: cannot fetch JailbreakBench/JBB-Behaviors (harmful): no route"
    )
    jailbreakbench.jbb_goals.cache_clear()
