"""From a run directory to verdicts, on directories made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.evidence import Evidence, collect, read_evidence, write_evidence
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import RunError
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import MANIFEST_SCHEMA, RunDirectory
from lm_eval_cna.statistics.paired import mcnemar_p, tango

N = 100
Score = Callable[[Cell, int], dict[str, Any]]


def make_run(path: Path, cells: Sequence[Cell], score: Score, task: str = "harm", n: int = N) -> RunDirectory:
    """A finished run; `score` gives the metrics of a cell's document."""
    directory = RunDirectory(path / "run")
    entries = [{**cell._asdict(), "key": cell.key} for cell in cells]
    plan = {"model": "made/up", "contrast": "refusal", "random": 0, "match": "layer", "cells": entries}
    plan |= {"settings": ["plain"], "judged": [task]}
    architecture = {"name": "LlamaForCausalLM", "num_layers": 8, "mlp_width": 64, "dtype": "float32"}
    manifest = {"schema": MANIFEST_SCHEMA, "plan": plan, "architecture": architecture, "command": []}
    directory.write_json("manifest.json", manifest)
    for cell in cells:
        samples = []
        for document in range(n):
            metrics = score(cell, document)
            text = metrics.pop("text", "Sure, here is one way to do that.")
            samples.append(
                {"doc_id": document, "resps": [[text]], "filter": "none", "metrics": list(metrics), **metrics}
            )
        results = {"results": {task: {}}, "group_subtasks": {}, "samples": {task: samples}}
        directory.write_json(directory.results_name(cell.key, "plain"), results)
    return directory


def refuse(lost: Callable[[Cell], int], quality: float = 1.0) -> Score:
    """The baseline refuses everything; a cell does not refuse its first `lost(cell)` prompts."""

    def score(cell: Cell, document: int) -> dict[str, Any]:
        refused = cell == BASELINE or document >= lost(cell)
        broken = cell.method == "cna" and quality < 1
        return {
            "refusal_rate": float(refused),
            "quality": quality if broken else 1.0,
            "degenerate_rate": float(broken and document < 40),
        }

    return score


def sweep(controls: int, *more: Cell) -> list[Cell]:
    return [
        BASELINE,
        Cell("cna", 0.0),
        Cell("cna", 0.5),
        *more,
        *(Cell("random", 0.0, seed) for seed in range(controls)),
    ]


def one(evidence: Evidence, cell: str, metric: str = "refusal_rate") -> Any:
    (found,) = [verdict for verdict in evidence.verdicts if (verdict.cell, verdict.metric) == (cell, metric)]
    return found


def test_a_special_circuit(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(19), refuse(lambda cell: 62 if cell.method == "cna" else (cell.seed or 0) % 4))
    evidence = collect(run)
    found = one(evidence, "cna-m0")
    assert found.text == (
        "Ablation (cna, m = 0) lowers refusal on harm by 62.0 points (95 % interval 52.2 to 70.9; "
        "exact McNemar p < 0.001 after Holm), outside the null band of 19 random controls (-3.0 to 0.0 points; "
        "p = 0.05)."
    )
    assert (found.finding, found.broken) == ("specific", False)
    row = evidence.find("cna-m0", "harm", "refusal_rate")
    assert row is not None and row.paired is not None and row.null is not None and row.interval is not None
    assert (row.n, row.value, row.paired.lost, row.paired.gained) == (N, 0.38, 62, 0)
    assert row.paired.interval == tango(0, 62, N)
    # Two cells of the family have the same p, so Holm doubles it.
    assert row.p_holm == pytest.approx(2 * mcnemar_p(0, 62))
    assert row.null.effects == pytest.approx([-(seed % 4) / 100 for seed in range(19)])
    assert 0.38 in row.interval
    control = evidence.find("random-s3-m0", "harm", "refusal_rate")
    assert control is not None and control.p_holm is None and control.null is None
    assert evidence.find("cna-m0", "harm", "nothing") is None


def test_a_circuit_like_any_other(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(19), refuse(lambda cell: 30 if cell.method == "cna" else 2 * (cell.seed or 0)))
    found = one(collect(run), "cna-m0")
    assert found.finding == "unspecific"
    assert "lowers refusal on harm by 30.0 points" in found.text
    assert "no effect distinguishable from random neurons: inside the null band of 19 random controls" in found.text


def test_few_controls_never_make_it_significant(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(18), refuse(lambda cell: 62 if cell.method == "cna" else 1))
    found = one(collect(run), "cna-m0")
    assert found.finding == "effect"
    assert "outside the range of 18 random controls (-1.0 to -1.0 points), too few for a test" in found.text
    assert "significant" not in found.text


def test_no_controls(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(0), refuse(lambda cell: 62))
    found = one(collect(run), "cna-m0")
    assert found.finding == "effect"
    assert "no controls were run here" in found.text


def test_no_effect_says_what_could_have_been_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(19), refuse(lambda cell: 1))
    found = one(collect(run), "cna-m0")
    assert found.finding == "none"
    assert "no effect on refusal on harm that can be told from chance: -1.0 points" in found.text
    assert "no effect distinguishable from random neurons" in found.text
    assert "With 100 prompts, an effect of 7.8 points or more would have been seen" in found.text


def test_broken_text_is_said(tmp_path: Path) -> None:
    lost = lambda cell: 62 if cell.method == "cna" else 1  # noqa: E731
    run = make_run(tmp_path, sweep(19), refuse(lost, quality=0.4))
    found = one(collect(run), "cna-m0")
    assert found.broken
    assert "The text is broken there (mean quality 0.40, baseline 1.00; 40.0 % of the answers degenerate" in found.text
    lenient = collect(run, budget=DamageBudget(quality=0.3, degenerate=0.5))
    assert not one(lenient, "cna-m0").broken


def test_sizes_have_their_own_controls(tmp_path: Path) -> None:
    cells = [BASELINE]
    for size in (10, 20):
        cells += [Cell("cna", 0.0, None, size), *(Cell("random", 0.0, seed, size) for seed in range(2))]
    run = make_run(tmp_path, cells, refuse(lambda cell: (cell.size or 0) * (3 if cell.method == "cna" else 1)))
    evidence = collect(run)
    for size in (10, 20):
        row = evidence.find(f"cna-k{size}-m0", "harm", "refusal_rate")
        assert row is not None and row.null is not None
        assert row.null.effects == pytest.approx([-size / 100] * 2)
    assert "(cna, 10 neurons, m = 0)" in one(evidence, "cna-k10-m0").text


def test_dose_response_and_power(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(0), refuse(lambda cell: int(80 * (1 - cell.multiplier))))
    evidence = collect(run)
    (trend,) = evidence.trends
    assert trend.text == (
        "Refusal on harm rises with the multiplier of cna: from 20.0 % at m = 0 to 100.0 % at m = 1 "
        "(Page's trend test p < 0.001, 100 prompts)."
    )
    (power,) = evidence.powers
    assert [found.opposite for found in power.power] == [0.0, 0.05]


def test_a_turning_dose_response_is_not_called_steady(tmp_path: Path) -> None:
    cells = [BASELINE, *(Cell("caa", m) for m in (0.0, 0.25, 0.5, 2.0))]
    run = make_run(tmp_path, cells, refuse(lambda cell: 90 if cell.multiplier < 1 else 40))
    (trend,) = collect(run).trends
    assert (
        "tends to rise with the multiplier of caa, but turns: least 10.0 % at m = 0, most 100.0 % at m = 1"
        in trend.text
    )


def test_evidence_survives_json(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(3), refuse(lambda cell: 20))
    evidence = collect(run)
    write_evidence(run, evidence)
    assert read_evidence(run) == evidence
    assert collect(run) == evidence  # every seed is fixed
    run.write_json("evidence.json", {"schema": "lm-eval-cna/evidence/0"})
    with pytest.raises(RunError, match=r"evidence\.json is damaged"):
        read_evidence(run)


def test_means_are_compared_as_means(tmp_path: Path) -> None:
    def score(cell: Cell, document: int) -> dict[str, Any]:
        return {"strongreject_score": (document % 5) / 8 + (0.25 if cell.method == "cna" else 0.0)}

    found = one(collect(make_run(tmp_path, sweep(19), score)), "cna-m0", "strongreject_score")
    assert "raises the StrongREJECT score on harm by 0.250 (95 % interval" in found.text
    assert "sign-flip permutation p < 0.001 after Holm" in found.text
    assert "(0.000 to 0.000; p = 0.05)" in found.text


def test_sparse_metrics_stay_sparse(tmp_path: Path) -> None:
    def score(cell: Cell, document: int) -> dict[str, Any]:
        scores: dict[str, Any] = {"acc": float(document % 2), "text": "x", "words": [1], "flag": float("nan")}
        if cell == BASELINE and document < 10:
            del scores["acc"]
        return scores

    run = make_run(tmp_path, sweep(0), score)
    outcomes = read_outcomes(run)
    assert outcomes.questions() == [("harm", "acc")]
    assert len(outcomes.of("baseline", "harm", "acc")) == N - 10
    evidence = collect(run)
    row = evidence.find("cna-m0", "harm", "acc")
    assert row is not None and row.paired is not None
    assert (row.n, row.paired.n, row.paired.left_out) == (N, N - 10, 10)
    assert "10 prompts without a value in both cells left out." in one(evidence, "cna-m0", "acc").text


def test_a_group_is_one_task(tmp_path: Path) -> None:
    run = make_run(tmp_path, [BASELINE], lambda cell, document: {"acc": 1.0}, n=3)
    name = run.results_name("baseline", "plain")
    results = run.read_json(name)
    (samples,) = results["samples"].values()
    filtered = [{**sample, "filter": "strict", "acc": 0.0} for sample in samples]
    results["samples"] = {"mmlu_law": samples + filtered, "mmlu_art": samples, "alone": samples}
    results["group_subtasks"] = {"mmlu": ["mmlu_soft"], "mmlu_soft": ["mmlu_law", "mmlu_art"], "bag": ["alone"]}
    results["results"] = {"mmlu": {"acc,none": 1.0}, "mmlu_soft": {"acc,none": 1.0}, "bag": {"alias": "bag"}}
    run.write_json(name, results)
    outcomes = read_outcomes(run)
    assert outcomes.questions() == [("mmlu", "acc"), ("mmlu", "acc (strict)"), ("alone", "acc")]
    assert set(outcomes.of("baseline", "mmlu", "acc")) == {
        f"mmlu_{of}/{doc}" for of in ("law", "art") for doc in range(3)
    }


def test_verdicts_of_a_later_judge_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, sweep(0), lambda cell, document: {"refusal_rate": 0.0, "strongreject_score": 0.9}, n=3)
    rows = [
        {
            "cell": key,
            "task": "harm",
            "doc_id": document,
            "score": None if document == 2 else 0.5,
            "judgements": {} if document == 2 else {"refusal": 0, "convincingness": 3, "specificity": 3},
            "unscored_because": "no verdict in the reply" if document == 2 else None,
        }
        for key in ("baseline", "cna-m0")
        for document in range(3)
    ]
    judge = {"model": "other", "fingerprint": "abcdef0123456789"}
    run.write_json(
        "judged/abcdef012345.json", {"judge": judge, "rubric_version": "strongreject/1/w/9", "verdicts": rows}
    )
    outcomes = read_outcomes(run)
    assert outcomes.judge == judge
    assert outcomes.of("cna-m0", "harm", "strongreject_score") == {0: 0.5, 1: 0.5}
    assert outcomes.of("cna-m0", "harm", "unscored") == {0: 0.0, 1: 0.0, 2: 1.0}
    assert outcomes.of("cna-m0.5", "harm", "strongreject_score") == dict.fromkeys(range(3), 0.9)
    assert outcomes.kind("harm", "strongreject_score") == "mean"
    assert read_outcomes(run, judge="abcdef").judge == judge
    with pytest.raises(RunError, match="no verdicts by that judge"):
        read_outcomes(run, judge="9999")


def test_what_is_not_a_finished_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"manifest\.json"):
        collect(RunDirectory(tmp_path))
    run = make_run(tmp_path, sweep(0), refuse(lambda cell: 1))
    path = run.path / run.results_name("cna-m0", "plain")
    kept = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({"results": {}, "samples": {"harm": [{}]}}), encoding="utf-8")
    with pytest.raises(RunError, match=r"cna-m0.* is damaged"):
        collect(run)
    path.write_text(kept, encoding="utf-8")
    (run.path / run.results_name("baseline", "plain")).unlink()
    with pytest.raises(RunError, match="no results of the baseline"):
        collect(run)
