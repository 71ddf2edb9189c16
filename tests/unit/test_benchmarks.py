"""The benchmarks' own arithmetic and files: a wrong ratio would be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sides
from benchmarks.record import entry, write
from benchmarks.sides import Outcome, Row, Side, compare
from benchmarks.workbench import multipliers
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.grid import plan_cells


def a_row(name: str = "discovery", **target: Any) -> Row:
    return Row(name, "ours", "theirs | others", lambda bench: Outcome(), 3, **target)


def test_the_ratio_is_how_many_times_longer_theirs_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(sides.time, "perf_counter", lambda: clock[0])

    def work(name: str, seconds: float) -> Any:
        def do() -> None:
            order.append(name)
            clock[0] += seconds

        return do

    ours, theirs = Side("ours", work("a", 2.0)), Side("theirs", work("b", 3.0), 4.0, "one of four")
    found = compare(ours, theirs, 3, note="Said", size=7)
    assert order == ["a", "b", *"abbaab"], "a warm-up, then in turn"
    assert found.ours == (2.0,) * 3 and found.theirs == (12.0,) * 3
    assert found.values == (6.0,) * 3 and found.value == 6
    assert found.note == "Said; theirs: one of four, scaled by 4" and found.details == {"size": 7}


@pytest.mark.parametrize(
    ("target", "value", "verdict", "words"),
    [
        ({"at_least": 10}, 10.0, "met", "at least 10 x"),
        ({"at_least": 10}, 9.99, "missed", "at least 10 x"),
        ({"at_most": 2.0}, 2.1, "missed", "at most 2 x"),
        ({}, 5.0, "-", "-"),
    ],
)
def test_targets(target: dict[str, float], value: float, verdict: str, words: str) -> None:
    row = a_row(**target)
    assert (row.verdict(value), row.target) == (verdict, words)


def test_files_keep_the_rows_that_were_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.record.ROWS", {name: a_row(name) for name in ("one", "two", "three")})
    common: dict[str, Any] = {"threads": 1, "seed": 0, "command": "make bench"}
    outcome = Outcome((1.0, 2.0, 1.5), (9.0, 8.0, 9.0), (9.0, 4.0, 6.0), ("us", "them"), "Noted.", {"size": {"a": 1}})
    path = tmp_path / "deep" / "machine"
    write(path, [entry(a_row("three", at_least=6), outcome, **common), entry(a_row("one"), outcome, **common)])
    write(path, [entry(a_row("one"), Outcome(skipped="no GPU here"), **common)])
    data = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["name"] for row in data["rows"]] == ["one", "three"], "in the order of the table"
    assert data["rows"][0]["skipped"] == "no GPU here"
    kept = data["rows"][1]
    assert (kept["figure"], kept["range"], kept["verdict"], kept["rounds"]) == (6.0, [4.0, 9.0], "met", 3)
    assert kept["ours"] == {"label": "us", "median_seconds": 1.5, "seconds": [1.0, 2.0, 1.5]}
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| three | ours | theirs / others | 1.5 s | 9 s | 6 x | 4 to 9 | 3 | at least 6 x | met |" in text
    assert "skipped: no GPU here" in text and "## one" not in text and "- size: a 1" in text
    assert sorted(found.name for found in path.parent.iterdir()) == ["machine.json", "machine.md"]


@pytest.mark.parametrize("cells", [5, 36])
def test_a_sweep_has_as_many_cells_as_its_row_says(cells: int, tmp_path: Path) -> None:
    config = parse_config(
        {
            "model": "m",
            "output": str(tmp_path),
            "circuit": "c",
            "methods": ["cna", "random"],
            "random": 1,
            "multipliers": multipliers(cells - 2),
        }
    )
    assert len(plan_cells(config)) == cells and {0.0, 1.0, 2.0} <= set(config.multipliers)
