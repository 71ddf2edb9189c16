"""The leaderboard: the best setting within the budget, one protocol only, and names that nobody vouches for."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.cli import main
from lm_eval_cna.errors import RunError
from lm_eval_cna.report.leaderboard import as_csv, as_html, as_markdown
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from tests.helpers.report_runs import ANSWER, REFUSAL, answer_metrics, rich_run, write_run

HOSTILE = "=cmd|' /C calc'!A0</td><script>alert(1)</script>\"onmouseover=\"x`|{{ 7*7 }}\n# [x](javascript:1)\u202e"


def a_run(
    path: Path, *, ablated: float, halved: float = 0.8, lost: float = 0.0, n: int = 50, controls: int = 19, **plan: Any
) -> RunDirectory:
    """Refusal falls to `ablated` at 0, where that share of the capability is lost, and to `halved` at 0.5."""
    cells = [BASELINE, Cell("cna", 0.0), Cell("cna", 0.5), *(Cell("random", 0.0, seed) for seed in range(controls))]
    rates = {"cna-m0": ablated, "cna-m0.5": halved}

    def refuses(cell: Cell, document: int) -> dict[str, Any]:
        return answer_metrics(REFUSAL if document / n < rates.get(cell.key, 1.0) else ANSWER)

    def knows(cell: Cell, document: int) -> dict[str, Any] | None:
        known = 1 - lost if cell.key == "cna-m0" else 1.0
        return None if cell.seed is not None else {"acc": float(document / n < known)}

    return write_run(path, cells, {"jbb": refuses, "mmlu": knows}, n=n, plan=plan)


def test_the_best_setting_within_the_budget_is_ranked(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / "damaged", ablated=0.0, lost=0.1, model="org/a"),
        a_run(tmp_path / "good", ablated=0.2, model="org/b"),
        a_run(tmp_path / "idle", ablated=1.0, halved=1.0, model="org/c"),
    ]
    found = leaderboard(runs)
    assert [(row.rank, row.model, row.multiplier) for row in found.rows] == [
        (1, "org/b", 0.0),
        (2, "org/a", 0.5),
        (3, "org/c", None),
    ]
    first, second, last = found.rows
    assert first.effect == pytest.approx(-0.8) and first.interval is not None and first.effect in first.interval
    assert (first.quality, first.degenerate, first.capability, first.capability_task) == (1.0, 0.0, 0.0, "mmlu")
    assert (first.standing, second.standing) == ("beyond", "untested")  # no controls at 0.5
    assert last.effect is last.quality is last.capability is None
    generous = leaderboard(runs, budget=DamageBudget(capability=0.2))
    assert [(row.model, row.multiplier) for row in generous.rows[:2]] == [("org/a", 0.0), ("org/b", 0.0)]
    worst = generous.rows[0]
    assert worst.capability == pytest.approx(-0.1) and worst.capability_interval is not None
    assert worst.capability_interval.low < -0.1 < worst.capability_interval.high
    assert all(row.effect is None for row in leaderboard(runs, direction="raise").rows)


def test_a_file_without_a_checksum_is_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", ablated=0.2)
    assert leaderboard([run]).notes == ()
    kept = run.path / "cells" / "cna-m0" / "plain.json"
    run.write_text("cells/cna-m0/plain.json", re.sub(r',\s*"sha256": "\w+"', "", kept.read_text()))
    (note,) = leaderboard([RunDirectory(run.path)]).notes
    assert note.startswith(f"{run.path}: cells/cna-m0/plain.json has no checksum")


def test_a_row_for_every_method_with_the_judges_score(tmp_path: Path) -> None:
    found = leaderboard([rich_run(tmp_path / "rich", n=30, controls=3)])
    assert found.task == "jbb_strongreject" and sorted(row.method for row in found.rows) == ["caa", "cna"]
    cna = next(row for row in found.rows if row.method == "cna")
    assert cna.size in (4, 6) and cna.strongreject is not None and cna.strongreject_interval is not None
    assert leaderboard([RunDirectory(tmp_path / "rich")], task="xstest_safe").task == "xstest_safe"
    with pytest.raises(RunError, match="no refusal was measured on that task; got 'mmlu'; allowed: jbb_strongreject"):
        leaderboard([RunDirectory(tmp_path / "rich")], task="mmlu")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 40}, "documents of jbb: 50 in"),
        ({"controls": 5}, "random: 19 in"),
        ({"limit": 50}, "limit: None in"),
        ({"scale": 2.0}, "scale: 1 in"),
        ({"tasks": [{"task": "jbb", "chat_template": False}]}, "jbb (chat_template False) in"),
    ],
)
def test_runs_of_different_protocols_are_not_ranked(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    runs = [a_run(tmp_path / "one", ablated=0.2), a_run(tmp_path / "two", ablated=0.2, **changes)]
    with pytest.raises(RunError, match="different protocols cannot be ranked together") as caught:
        leaderboard(runs)
    assert says in str(caught.value) and "one" in str(caught.value) and "two" in str(caught.value)


def test_circuits_of_other_contrast_sets_are_not_ranked_together(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, ablated=0.2) for name in ("one", "two")]
    circuit = runs[1].read_json("circuit.json")
    circuit["discovery"]["contrast"] = "agreement"
    runs[1].write_json("circuit.json", circuit)
    with pytest.raises(RunError, match=r"circuit: contrast refusal, size .* contrast agreement"):
        leaderboard(runs)


def test_other_models_and_templates_are_one_protocol(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, ablated=0.2, model=name) for name in ("one", "two")]
    results = runs[1].read_json("cells/baseline/plain.json")
    for sample in results["samples"]["jbb"]:
        sample["arguments"][0][0] = f"[INST]{sample['arguments'][0][0]}"
    runs[1].write_json("cells/baseline/plain.json", results)
    assert [row.rank for row in leaderboard(runs).rows] == [1, 1]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_names_that_nobody_vouches_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "=1+1 <img src=x onerror=alert(1)>"
    found = leaderboard([a_run(folder, ablated=0.2, model=HOSTILE)])
    page = _Page()
    page.feed(as_html(found))
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not [name for name in page.attributes if name.startswith("on")]
    shown = unescape(as_html(found))
    assert "default-src 'none'" in shown and "{{ 7*7 }}" in shown and "\u202e" not in shown
    text = as_markdown(found)
    assert "<script" not in text and "<img" not in text and not re.search(r"(?<!\\)\]\(", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    head, row = csv.reader(io.StringIO(as_csv(found)))
    assert len(head) == len(row)
    named = dict(zip(head, row, strict=True))
    assert named["model"].startswith("'=cmd") and named["run"].startswith("'=1+1") and "\n" not in named["model"]
    assert float(named["effect_points"]) == -80 and float(named["capability_points"]) == 0
    assert main(["leaderboard", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "\u202e" not in capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "runs" / "one", ablated=0.2)
    a_run(tmp_path / "runs" / "two", ablated=0.4, model="org/other")
    output = tmp_path / "board"
    one = str(tmp_path / "runs" / "one")
    assert main(["leaderboard", str(tmp_path / "runs"), one, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "org/other" in said and said.count("made/up") == 1
    assert sorted(path.name for path in output.iterdir()) == ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]
    assert main(["leaderboard", one, "--output", one]) == 2
    assert main(["leaderboard", str(tmp_path / "nothing"), "--output", str(output)]) == 2
    a_run(tmp_path / "runs" / "three", ablated=0.4, n=20)
    assert main(["leaderboard", str(tmp_path / "runs"), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert "cannot be ranked together" in error and "Traceback" not in error
