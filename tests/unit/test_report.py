"""The report, from summaries made by hand: tables, verdicts, figures, and names that nobody vouches for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.errors import RunError
from lm_eval_cna.report.page import write_report
from lm_eval_cna.report.tables import columns, rows, spread
from lm_eval_cna.sweep.cells import BASELINE, Cell
from lm_eval_cna.sweep.rundir import RunDirectory
from lm_eval_cna.sweep.summary import Measured, Summary, coordinates

Values = dict[Cell, dict[tuple[str, str], float]]
REFUSAL = ("organism_refusal", "refusal_rate")
QUALITY = ("organism_refusal", "quality")


def summary(values: Values) -> Summary:
    return Summary(
        measured=tuple(
            Measured(**coordinates(cell), task=task, metric=metric, value=value, n=80)
            for cell, metrics in values.items()
            for (task, metric), value in metrics.items()
        )
    )


def run(path: Path, values: Values, *, plan: dict[str, Any] | None = None, **facts: Any) -> RunDirectory:
    directory = RunDirectory(path)
    cells = [cell._asdict() | {"key": cell.key} for cell in values]
    seeds = {cell.seed for cell in values if cell.seed is not None}
    planned = {"model": "m", "contrast": "organism", "random": len(seeds), "match": "layer", "tasks": [], "judged": []}
    architecture = {
        "name": "LlamaForCausalLM",
        "num_layers": 16,
        "mlp_width": 256,
        "hidden_size": 64,
        "dtype": "float32",
    }
    manifest = {"plan": {**planned, "cells": cells, **(plan or {})}, "architecture": architecture, "command": ["x"]}
    directory.adopt({**manifest, **facts})
    directory.write_text("summary.json", summary(values).model_dump_json(by_alias=True))
    return directory


def sweep(*, effect: float, controls: list[float], baseline: float = 0.9) -> Values:
    return {
        BASELINE: {REFUSAL: baseline, QUALITY: 1.0},
        Cell("cna", 0.0): {REFUSAL: effect, QUALITY: 0.98},
        Cell("cna", 2.0): {REFUSAL: 1.0, QUALITY: 0.97},
        **{Cell("random", 0.0, seed): {REFUSAL: value, QUALITY: 0.99} for seed, value in enumerate(controls)},
    }


def report(folder: Path, values: Values, *, figures: bool = False, **more: Any) -> str:
    with pytest.MonkeyPatch.context() as patched:
        if not figures:  # drawing takes a second
            patched.setattr("lm_eval_cna.report.page.overview", lambda *_, **__: [])
        return write_report([run(folder / "run", values, **more)], folder).read_text(encoding="utf-8")


def outside_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", text)


# Tables


def test_columns_and_rows() -> None:
    made = summary(sweep(effect=0.1, controls=[0.8, 0.9, 1.0]))
    shown = columns(made)
    assert [(column.task, column.metric) for column in shown] == [REFUSAL, QUALITY]
    table = rows(made, shown)
    assert [(row.label, row.multiplier) for row in table] == [
        ("baseline", 1.0),
        ("CNA", 0.0),
        ("CNA", 2.0),
        ("random neurons", 0.0),
    ]
    assert [str(row.cells[0]) for row in table] == ["0.900", "0.100", "1.000", "0.900 (0.800 to 1.000)"]


def test_sizes_are_rows_of_their_own_and_unasked_tasks_stay_empty() -> None:
    made = summary(
        {
            BASELINE: {REFUSAL: 0.9, ("mmlu", "acc"): 0.5},
            Cell("cna", 0.0, size=10): {REFUSAL: 0.5, ("mmlu", "acc"): 0.4},
            Cell("cna", 0.0, size=20): {REFUSAL: 0.1, ("mmlu", "acc"): 0.3},
            Cell("random", 0.0, 0, 20): {REFUSAL: 0.9},
        }
    )
    table = rows(made, columns(made))
    assert [row.label for row in table] == ["baseline", "CNA, 10", "CNA, 20", "random neurons, 20"]
    assert [row.cells[1] is None for row in table] == [False, False, False, True]


def test_spread() -> None:
    assert spread([]) is None
    values = spread([0.0, 0.5, 1.0])
    assert values is not None and (values.mean, values.low, values.high, values.n) == (0.5, 0.0, 1.0, 3)


def test_the_tables_in_the_report(tmp_path: Path) -> None:
    text = report(tmp_path, sweep(effect=0.1, controls=[0.8, 1.0]))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert any(re.match(r"\| CNA +\| 0 +\| 0\.100 +\| 0\.980", line) for line in lines)
    assert any("random neurons" in line and "0.900 (0.800 to 1.000)" in line for line in lines)


# Verdicts


def test_outside_the_range_of_nineteen_controls(tmp_path: Path) -> None:
    text = report(tmp_path, sweep(effect=0.1, controls=[0.85 + 0.005 * seed for seed in range(19)]))
    assert "outside the range of 19 random controls" in text and "-80.0 points" in text
    assert "Fewer than" not in text and "ignificant" not in text


def test_inside_the_range_of_controls(tmp_path: Path) -> None:
    text = report(tmp_path, sweep(effect=0.86, controls=[0.86] + [0.9] * 18))
    assert "inside the range of 19 random controls" in text
    assert "outside the range" not in text and "ignificant" not in text


def test_above_the_range_is_outside_too(tmp_path: Path) -> None:
    assert "outside the range of 2 random" in report(tmp_path, sweep(effect=0.95, controls=[0.8, 0.9]))


@pytest.mark.parametrize("seeds", [1, 3, 18])
def test_fewer_than_nineteen_controls_support_no_test(tmp_path: Path, seeds: int) -> None:
    text = report(tmp_path, sweep(effect=0.0, controls=[0.9] * seeds))
    assert f"outside the range of {seeds} random control" in text
    assert "Fewer than 19 controls" in text and "ignificant" not in text


def test_no_controls(tmp_path: Path) -> None:
    text = report(tmp_path, sweep(effect=0.0, controls=[]))
    assert "no random controls" in text and "range of" not in text and "ignificant" not in text


def test_the_verdict_stands_where_the_controls_do(tmp_path: Path) -> None:
    values = sweep(effect=0.1, controls=[0.9] * 3)
    values[Cell("cna", -1.0)] = {REFUSAL: 0.05, QUALITY: 1.0}
    text = report(tmp_path, values)
    assert "range of 3 random controls" in text and "no random controls" not in text


def test_a_verdict_for_every_circuit_size(tmp_path: Path) -> None:
    values: Values = {BASELINE: {REFUSAL: 0.9}}
    for size in (10, 20):
        values[Cell("cna", 0.0, size=size)] = {REFUSAL: 0.9 - size / 100}
        values |= {Cell("random", 0.0, seed, size): {REFUSAL: 0.9} for seed in range(2)}
    text = report(tmp_path, values)
    assert text.count("the range of 2 random controls") == 2
    assert "the circuit of 10 neurons moves refusal by -10.0 points" in text
    assert "the circuit of 20 neurons moves refusal by -20.0 points" in text


def test_a_run_without_circuit_or_refusal_has_no_verdict(tmp_path: Path) -> None:
    values: Values = {BASELINE: {("mmlu", "acc"): 0.5}, Cell("caa", 0.0): {("mmlu", "acc"): 0.4}}
    text = report(tmp_path, values)
    assert "the circuit moves" not in text and "| CAA " in text


# Untrusted names


@pytest.mark.parametrize("name", ["a|b", "<script>alert(1)</script>", "![x](http://e/p.png)", "# head", "**b**", "a`b"])
def test_names_of_tasks_are_text(tmp_path: Path, name: str) -> None:
    values: Values = {
        cell: {(name, "refusal_rate"): 0.5} for cell in (BASELINE, Cell("cna", 0.0), Cell("random", 0.0, 0))
    }
    text = report(tmp_path, values)
    prose = outside_code(text)
    assert "<script" not in prose and "![x]" not in prose and "**b**" not in prose
    assert not re.search(r"^#* ?# head", prose, re.MULTILINE)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1
    assert re.sub(r"\\.", "", text).count("`") % 2 == 0


@pytest.mark.parametrize("name", ["<b>x</b>", "a`b <img src=x>", "x\n\n# head\n", "a|b"])
def test_names_of_models_and_contrast_sets_are_text(tmp_path: Path, name: str) -> None:
    values = sweep(effect=0.1, controls=[0.9])
    text = report(tmp_path, values, plan={"model": name, "contrast": name}, command=["lm-eval-cna", name])
    assert "<b>" not in outside_code(text) and "<img" not in outside_code(text)
    assert "\n# head" not in text and text.count("`") % 2 == 0


def test_facts_of_the_architecture_are_text(tmp_path: Path) -> None:
    architecture = {"name": "<img src=x>", "num_layers": 1, "mlp_width": 1, "hidden_size": 1, "dtype": "<i>"}
    text = report(tmp_path, sweep(effect=0.1, controls=[0.9]), architecture=architecture)
    assert "<img" not in outside_code(text) and "<i>" not in outside_code(text)


def test_the_match_of_the_controls_is_text(tmp_path: Path) -> None:
    text = report(tmp_path, sweep(effect=0.1, controls=[0.9]), plan={"match": "<img src=x>"})
    assert "<img" not in outside_code(text)


@pytest.mark.parametrize("method", ["<b>|x", "future-method"])
def test_methods_that_this_version_does_not_know(tmp_path: Path, method: str) -> None:
    values = sweep(effect=0.1, controls=[0.9])
    values[Cell(method, 0.0)] = {REFUSAL: 0.3, QUALITY: 1.0}
    text = report(tmp_path, values)
    assert "<b>" not in text and "0.300" in text


# Figures and files


def test_figures_are_written_and_named_in_the_report(tmp_path: Path) -> None:
    text = report(tmp_path, sweep(effect=0.1, controls=[0.8, 1.0]), figures=True)
    (figure,) = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / figure).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.md", "run"]
    assert len(list((tmp_path / "figures").iterdir())) == 2  # nothing temporary is left


def test_several_runs_in_one_report(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, sweep(effect=0.1, controls=[0.9])) for name in ("base", "instruct")]
    text = write_report(runs, tmp_path, preface="Before *all*.").read_text(encoding="utf-8")
    assert text.index("Before *all*.") < text.index("## base") < text.index("## instruct")
    figures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(set(figures)) == 2 and all((tmp_path / figure).is_file() for figure in figures)


def test_names_with_dots_have_figures_of_their_own(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, sweep(effect=0.1, controls=[0.9])) for name in ("qwen-1.5b", "qwen-1.7b")]
    text = write_report(runs, tmp_path).read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(set(figures)) == 2 and all((tmp_path / figure).is_file() for figure in figures)


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    formula = r"a$\x$b"
    values: Values = {cell: {(formula, "refusal_rate"): 0.5} for cell in (BASELINE, Cell(formula, 0.0))}
    write_report([run(tmp_path / formula, values)], tmp_path)
    assert (tmp_path / "figures" / f"{formula}.png").is_file()


def test_a_name_with_a_space_is_a_whole_address(tmp_path: Path) -> None:
    text = write_report([run(tmp_path / "my run", sweep(effect=0.1, controls=[0.9]))], tmp_path).read_text("utf-8")
    (figure,) = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert figure == "figures/my%20run.png"
    assert (tmp_path / "figures" / "my run.png").is_file()


def test_a_sweep_of_the_baseline_alone(tmp_path: Path) -> None:
    assert "| baseline" in report(tmp_path, {BASELINE: {REFUSAL: 0.9, QUALITY: 1.0}}, figures=True)


def test_a_metric_that_is_not_a_number(tmp_path: Path) -> None:
    values = sweep(effect=float("nan"), controls=[0.9])
    assert "nan" in report(tmp_path, values, figures=True)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", sweep(effect=0.1, controls=[0.9]))
    (directory.path / "summary.json").unlink()
    with pytest.raises(RunError, match=r"no summary\.json in .*finished"):
        write_report([directory], tmp_path)
    assert not (tmp_path / "report.md").exists()


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
    values = sweep(effect=0.1, controls=[0.9])
    directory = run(tmp_path / "run", values)
    directory.write_json("manifest.json", {**directory.read_json("manifest.json"), **facts})
    with pytest.raises(RunError, match=rf"manifest\.json is damaged: {where}: .*run the sweep again"):
        write_report([directory], tmp_path)
