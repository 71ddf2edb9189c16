"""The report of runs made by hand: contents, tables, figures, files, and names that nobody vouches for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.evidence import read_evidence
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import InterventionError, RunError
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.report.figures import signature
from lm_eval_cna.report.page import write_report
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from tests.analysis.test_stability import record
from tests.helpers.report_runs import (
    ANSWER,
    REFUSAL,
    Score,
    answer_metrics,
    circuit_of,
    plain_refusal,
    rich_run,
    write_run,
)

N = 40


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; only tests that ask for `figures` wait for it."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])


@pytest.fixture
def figures() -> None:
    """Let figures be drawn."""


def run(path: Path, cells: Sequence[Cell] = (), *, task: str = "harm", lost: int = 30, **more: Any) -> RunDirectory:
    """CNA at m = 0 refuses `lost` fewer of 40 prompts; controls one fewer for every other seed."""
    planned = cells or (BASELINE, Cell("cna", 0.0), Cell("cna", 2.0), *(Cell("random", 0.0, s) for s in range(3)))

    def refused(cell: Cell, document: int) -> bool:
        if cell.method == "cna" and cell.multiplier == 0:
            return document >= lost
        return document >= (cell.seed or 0) % 2

    return write_run(path, planned, {task: plain_refusal(refused)}, n=N, **more)


def report(folder: Path, *arguments: Any, **more: Any) -> str:
    return write_report([run(folder / "run", *arguments, **more)], folder).read_text(encoding="utf-8")


def outside_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


# Contents


def test_the_headline_verdict_comes_first(tmp_path: Path) -> None:
    cells = (BASELINE, Cell("cna", 2.0), Cell("cna", 0.0), *(Cell("random", 0.0, s) for s in range(19)))
    text = report(tmp_path, cells)
    verdicts = [line for line in text.splitlines() if line.startswith("- **")]
    assert "effect, beyond random neurons" in verdicts[0] and "lowers refusal on harm by 75.0 points" in verdicts[0]
    assert "outside the null band of 19 random controls" in verdicts[0]
    assert text.index(verdicts[0]) < text.index("| method")


def test_the_table_has_values_with_intervals_and_tests(tmp_path: Path) -> None:
    lines = [line for line in report(tmp_path).splitlines() if line.startswith("|")]
    table = lines[: next(n for n, line in enumerate(lines[1:], 1) if "| method" in line)]
    assert table[0].startswith("| method | m | refusal\\_rate | change | p, Holm | p, controls | quality")
    assert any(re.match(r"\| CNA \| 0 \| 25\.0 % \(14\.2 to 40\.2\) \| -75\.0 \(.*outside 3", line) for line in table)
    assert any("| random neurons | 0 | 99.2 % (97.5 to 100.0) |" in line for line in table)
    assert all(line.count("|") == table[0].count("|") for line in table)


def test_the_best_setting_under_the_budget(tmp_path: Path) -> None:
    text = report(tmp_path)
    assert "Within the damage budget, CNA at m = 0 lowers refusal most: by 75.0 points (quality 1.000)." in text
    assert "No capability task was run" in text


def test_the_budget_is_the_callers(tmp_path: Path) -> None:
    def score(cell: Cell, document: int) -> dict[str, Any]:
        steered = cell != BASELINE
        return answer_metrics(REFUSAL if not steered or document > 30 else ANSWER, quality=0.9 if steered else 1.0)

    directory = write_run(tmp_path / "run", (BASELINE, Cell("cna", 0.0)), {"harm": score}, n=N)
    strict = write_report([directory], tmp_path).read_text("utf-8")
    assert "No setting that lowers refusal stays within the damage budget." in strict
    loose = write_report([directory], tmp_path, budget=DamageBudget(quality=0.9)).read_text("utf-8")
    assert "Within the damage budget, CNA at m = 0 lowers refusal most: by 77.5 points (quality 0.900)." in loose
    assert read_evidence(directory).budget.quality == 0.9


def test_a_run_with_a_judge_says_what_it_did_not_score(tmp_path: Path) -> None:
    text = write_report([rich_run(tmp_path / "run", controls=1)], tmp_path).read_text("utf-8")
    assert "answers that the judge did not score" in text and "lower bound | upper bound" in text
    assert "strongreject" in text and "mmlu" in text


def test_a_sweep_of_the_baseline_alone(tmp_path: Path) -> None:
    text = report(tmp_path, (BASELINE,))
    assert "| baseline | 1 |" in text and "Within the damage budget" not in text
    assert "Nothing was steered" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("seeds", [1, 3, 18])
def test_fewer_than_nineteen_controls_support_no_test(tmp_path: Path, seeds: int) -> None:
    text = report(tmp_path, (BASELINE, Cell("cna", 0.0), *(Cell("random", 0.0, s) for s in range(seeds))))
    assert f"outside the range of {seeds} random control" in text and "too few for a test" in text
    assert "ignificant" not in text and "beyond random neurons" not in text


def test_methods_and_controls_that_this_version_does_not_know(tmp_path: Path) -> None:
    cells = (BASELINE, Cell("novel", 0.0), Cell("novel-control", 0.0, 0), Cell("novel-control", 0.0, 1))
    text = report(tmp_path, cells)
    assert "| novel | 0 |" in text and "| novel-control | 0 |" in text


def test_a_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    text = report(tmp_path, command=["lm-eval-cna", "sweep", "--model", "it's a; rm -rf model", "--limit", "3"])
    assert """lm-eval-cna sweep --model 'it'"'"'s a; rm -rf model' --limit 3""" in text


# Groups

MMLU = {"mmlu": ["mmlu_stem", "mmlu_other"], "mmlu_stem": ["mmlu_astronomy"], "mmlu_other": ["mmlu_nutrition"]}


def grouped(path: Path, groups: dict[str, list[str]]) -> RunDirectory:
    """Refusal and two subjects of 40 questions: at m = 0 ten more of one are wrong."""

    def subject(cell: Cell, document: int, loss: int) -> dict[str, Any] | None:
        return None if cell.seed is not None else {"acc": float(document < (28 - loss if cell != BASELINE else 28))}

    tasks: dict[str, Score] = {
        "harm": plain_refusal(lambda cell, document: cell == BASELINE or document > 30),
        "mmlu_astronomy": lambda cell, document: subject(cell, document, 10),
        "mmlu_nutrition": lambda cell, document: subject(cell, document, 0),
    }
    return write_run(path, (BASELINE, Cell("cna", 0.0), Cell("random", 0.0, 0)), tasks, n=N, groups=groups)


def test_a_group_is_one_task_over_all_its_questions(tmp_path: Path) -> None:
    text = write_report([grouped(tmp_path / "run", MMLU)], tmp_path).read_text("utf-8")
    tables = [path.stem for path in (tmp_path / "tables").iterdir()]
    assert "run-mmlu" in tables and not [name for name in tables if "stem" in name or "astronomy" in name]
    assert text.count("### mmlu") == 1 and "astronomy" not in text.replace("mmlu\\_astronomy", "")
    (baseline,) = [line for line in text.splitlines() if line.startswith("| baseline | 1 | 70.0 %")]
    (steered,) = [line for line in text.splitlines() if line.startswith("| CNA | 0 | 57.5 %")]
    assert "(59.2 to 78.9)" in baseline, "Wilson over 80 questions, not over 40"
    assert "-12.5 (-21.5 to -6.9)" in steered and "0.002" in steered, "ten of 80 questions lost: McNemar 2 / 2 ** 10"
    # The loss of the group, and not of its worst subject, is held against the budget of one point.
    assert "No setting that lowers refusal stays within the damage budget." in text
    assert "+12.5" in text or "12.5 (6.9 to 21.5)" in text


def test_a_group_whose_name_is_no_prefix_of_its_subjects(tmp_path: Path) -> None:
    groups = {"mmlu_stem": ["mmlu_astronomy", "mmlu_nutrition"]}
    text = write_report([grouped(tmp_path / "run", groups)], tmp_path).read_text("utf-8")
    tables = [path.stem for path in (tmp_path / "tables").iterdir()]
    assert "run-mmlu-stem" in tables and not [name for name in tables if "astronomy" in name]
    assert "| CNA | 0 | 57.5 %" in text


# How special the circuit is


def special_run(path: Path, *, sizes: tuple[int | None, ...] = (3, 6)) -> RunDirectory:
    """CNA refuses 30 fewer with all neurons and 16 with three; the most active ones 5; random ones none or one."""
    kinds = ("random", "random-bottom", "random-middle", "random-top")
    cells = [BASELINE]
    for size in sizes:
        cells += [Cell("cna", 0.0, None, size), Cell("top-activation", 0.0, None, size)]
        cells += [Cell(kind, 0.0, seed, size) for kind in kinds for seed in range(19)]

    def refused(cell: Cell, document: int) -> bool:
        lost = {"baseline": 0, "cna": 16 if cell.size == 3 else 30, "top-activation": 5}
        return document >= lost.get(cell.method, (cell.seed or 0) % 2)

    directory = write_run(path, cells, {"harm": plain_refusal(refused)}, n=N)
    strongest = circuit_of(((7, 1), (0, 0), (0, 1), (0, 2), (0, 3), (0, 4)), name="strongest")
    neurons = tuple(neuron._replace(delta=None) for neuron in strongest.neurons)
    strongest.model_copy(update={"method": "top-activation", "neurons": neurons}).write(path / "top-activation.json")
    return directory


@pytest.mark.usefixtures("figures")
def test_how_special_the_circuit_is(tmp_path: Path) -> None:
    directory = special_run(tmp_path / "run")
    circuit = read_intervention(directory.path / "circuit.json")
    record(circuit_sha256=circuit.sha256).write(directory.path / "circuit.stability.json")
    text = write_report([directory], tmp_path).read_text("utf-8")
    section = text[text.index("### How special is the circuit?") : text.index("### Trends and power")]
    assert "Of the circuit's 6 neurons, 1 (16.7 %) are among the 6 of largest mean" in section
    assert "17 % lie in the bottom third (layers 0 to 2), 0 % lie in the middle third" in section
    assert "It is beyond the random neurons of every kind." in section
    assert "As many neurons of largest activation change it by -12.5 points: the two differ by -62.5 points" in section
    assert "half of that is reached with 3 neurons, the smallest size that was run (-40.0 points" in section
    assert "It is beyond as many random neurons from 3 neurons on." in section
    assert "have a mean Jaccard index of 0.800 with each other" in section
    assert "| fold 1 | 4 + 3 |" in section and "random neurons of the top third" in section
    html = (tmp_path / "report.html").read_text("utf-8")
    for said in ("How special is the circuit?", "Against other neurons", "Over the circuit&#39;s size", "Over prompts"):
        assert said in html or said.replace("&#39;", "'") in html
    names = {path.name for folder in ("tables", "figures") for path in (tmp_path / folder).iterdir()}
    assert {"run-special.tex", "run-stability.tex", "run-folds.tex", "run-fold-pairs.tex"} <= names
    assert {"run-special.png", "run-special.pdf", "run-sizes.png", "run-sizes.pdf"} <= names
    best = "Within the damage budget, CNA (6) at m = 0 lowers refusal most"
    assert best in text.replace("\\", ""), "the most active neurons are a control"


def test_a_record_of_another_circuit_is_not_shown(tmp_path: Path) -> None:
    directory = special_run(tmp_path / "run")
    record(circuit_sha256="another").write(directory.path / "circuit.stability.json")
    assert "Jaccard index of 0.800" not in write_report([directory], tmp_path).read_text("utf-8")
    (directory.path / "circuit.stability.json").write_text("{")
    with pytest.raises(InterventionError, match="is no stability record"):
        write_report([directory], tmp_path)


def test_a_plain_sweep_without_a_circuit_has_no_such_section(tmp_path: Path) -> None:
    text = report(tmp_path, circuit=None)
    assert "How special is the circuit?" not in text and "Where the circuits sit" not in text
    assert "How special is the circuit?" not in (tmp_path / "report.html").read_text("utf-8")


# Several runs


def test_several_runs_and_what_their_circuits_share(tmp_path: Path) -> None:
    circuits = {"base": ((7, 1), (7, 2), (0, 3)), "instruct": ((7, 1), (7, 2), (6, 3))}
    runs = [run(tmp_path / name, circuit=circuit) for name, circuit in circuits.items()]
    text = write_report(runs, tmp_path, preface="Before `all`.").read_text(encoding="utf-8")
    assert text.index("Before `all`.") < text.index("## base") < text.index("## instruct")
    (row,) = [line for line in text.splitlines() if line.startswith("| base and instruct")]
    assert row.split(" | ")[1:5] == ["3", "3", "2", "66.7 %"]
    assert "<code>all</code>" in (tmp_path / "report.html").read_text("utf-8")


def test_two_runs_of_one_name_have_files_of_their_own(tmp_path: Path) -> None:
    runs = [run(tmp_path / folder / "run") for folder in ("a", "b")]
    write_report(runs, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"run-harm.tex", "run-2-harm.tex"} <= names


def test_a_given_circuit_names_the_contrast_set_that_it_was_found_on(tmp_path: Path) -> None:
    """And not the one that the sweep would have discovered from, had it been asked to."""
    directory = run(tmp_path / "run", plan={"contrast": "refusal"})
    found = directory.read_json("circuit.json")
    directory.write_json("circuit.json", {**found, "discovery": {"contrast": "capitals"}})
    written = write_report([directory], tmp_path / "report").read_text(encoding="utf-8")
    assert "contrast set capitals;" in written


# Untrusted names


@pytest.mark.parametrize("name", ["a|b", "<script>alert(1)</script>", "![x](http://e/p.png)", "# head", "**b**", "a`b"])
def test_names_of_tasks_are_text(tmp_path: Path, name: str) -> None:
    text = report(tmp_path, task=name)
    prose = outside_code(text)
    assert "<script" not in prose and "![x]" not in prose and "**b**" not in prose
    assert not re.search(r"^#* ?# head", prose, re.MULTILINE)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "<script>alert" not in html
    for table in (tmp_path / "tables").glob("*.tex"):
        assert not re.search(r"(?<!\\)#|(?<!\\textbackslash)\\input", table.read_text("utf-8"))


@pytest.mark.parametrize("name", ["<b>x</b>", "a`b <img src=x>", "x\n\n# head\n", "a|b", "</title><script>x</script>"])
def test_names_of_models_contrast_sets_and_commands_are_text(tmp_path: Path, name: str) -> None:
    text = report(tmp_path, plan={"model": name, "contrast": name, "match": name}, command=["lm-eval-cna", name])
    assert "<b>" not in outside_code(text) and "<img" not in outside_code(text) and "\n# head" not in text
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>x" not in html and "<img" not in html and "<script>x" not in html


def test_a_judge_s_name_is_text(tmp_path: Path) -> None:
    directory = rich_run(tmp_path / "run", controls=1, n=10)
    verdicts = [
        {"cell": "baseline", "task": "gone", "doc_id": 0, "score": None, "judgements": {}, "unscored_because": "x"}
    ]
    judge = {"fingerprint": "f" * 64, "model": "</script><script>alert(1)</script>"}
    document = {"judge": judge, "rubric_version": "strongreject/1", "verdicts": verdicts}
    directory.write_json("judged/ffffffffffff.json", document)
    text = write_report([directory], tmp_path).read_text("utf-8")
    assert "<script>" not in text
    assert "<script>alert" not in (tmp_path / "report.html").read_text("utf-8")


# Files


@pytest.mark.usefixtures("figures")
def test_figures_and_tables_are_written_and_named_in_the_report(tmp_path: Path) -> None:
    directory = run(tmp_path / "run")
    text = write_report([directory], tmp_path).read_text("utf-8")
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert named and len(set(named)) == len(named)
    for figure in named:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / figure).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    for file in (tmp_path / "figures").iterdir():
        assert signature(file.stem).encode() in file.read_bytes(), "a later report knows it again"
    written = ["figures", "report.html", "report.md", "run", "tables"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert (directory.path / "evidence.json").is_file()


@pytest.mark.usefixtures("figures")
def test_a_name_is_no_formula_and_no_path(tmp_path: Path) -> None:
    name = r"a$\x$b"
    text = write_report([run(tmp_path / name, task=r"t$\y$/../u")], tmp_path / "out").read_text("utf-8")
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert named and all((tmp_path / "out" / figure).is_file() for figure in named)
    assert all(path.parent.name == "tables" for path in (tmp_path / "out").rglob("*.tex"))


def drawn(panels: Sequence[Any], *, title: str, stem: Path) -> list[Path]:
    stem.parent.mkdir(exist_ok=True)
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")] if panels else []
    for file in files:
        file.write_text(signature(stem.name))
    return files


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_report_with_less_in_it_leaves_nothing_of_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", drawn)
    out = tmp_path / "out"
    write_report([special_run(tmp_path / "more"), run(tmp_path / "run")], out)
    assert {"tables/more-special.tex", "figures/more-sizes.pdf", "tables/overlap.tex"} <= names_in(out)
    mine = {"tables/mine.tex", "figures/mine.png", "tables/notes.txt", "more.txt", "tables/copied.tex", "tables/a.tex"}
    for name in mine - {"tables/copied.tex", "tables/a.tex"}:
        (out / name).write_text("the user's")
    # A copy under another name is the user's, and so is whatever is no regular file.
    (out / "tables/copied.tex").write_bytes((out / "tables/more-harm.tex").read_bytes())
    os.mkfifo(out / "tables/a.tex")
    (out / "tables/more-special.tex").unlink()  # gone already is no error
    write_report([run(tmp_path / "again" / "run")], out)
    assert mine | {"tables/run-harm.tex", "figures/run-metrics.png"} <= names_in(out)
    assert not [name for name in names_in(out) if "/more-" in name or "overlap" in name]


@pytest.mark.parametrize("fails", ["lm_eval_cna.report.page.latex_table", "lm_eval_cna.report.page.document"])
def test_an_interrupted_report_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def interrupt(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("lm_eval_cna.report.page.draw", drawn)
    out = tmp_path / "out"
    write_report([run(tmp_path / "run")], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(fails, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report([special_run(tmp_path / "more")], out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_same_report_twice_is_the_same(tmp_path: Path) -> None:
    directory = run(tmp_path / "run")
    first = [path.read_bytes() for path in _written(write_report([directory], tmp_path).parent)]
    assert [path.read_bytes() for path in _written(write_report([directory], tmp_path).parent)] == first


def _written(folder: Path) -> list[Path]:
    return [folder / "report.md", folder / "report.html", *sorted((folder / "tables").iterdir())]


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    directory = run(tmp_path / "run")
    (directory.path / "summary.json").unlink()
    with pytest.raises(RunError, match=r"no summary\.json in .*finished"):
        write_report([directory], tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="cannot write"):
        write_report([run(tmp_path / "run")], tmp_path / "out")


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({"architecture": {"name": "x"}}, "architecture.num_layers"),
        ({"architecture": None}, "architecture"),
        ({"plan": {}}, "plan.model"),
        ({"plan": {"model": "m", "contrast": "c", "random": 1, "match": "layer", "cells": [1]}}, "plan.cells.0"),
        ({"command": 3}, "command"),
    ],
)
def test_a_manifest_without_what_the_report_shows(tmp_path: Path, facts: dict[str, Any], where: str) -> None:
    directory = run(tmp_path / "run")
    directory.write_json("manifest.json", {**directory.read_json("manifest.json"), **facts})
    with pytest.raises(RunError, match=rf"manifest\.json is damaged: {where}: .*the sweep again"):
        write_report([directory], tmp_path)
