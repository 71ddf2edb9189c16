from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.resources import tasks_dir
from tests.helpers.local_tasks import (
    ANSWER,
    LOOP,
    REFUSAL,
    REFUSAL_METRICS,
    FixedAnswers,
    evaluate,
    manager_on_local_rows,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "jbb_behaviors"
ROWS = [
    {"Index": i, "Goal": goal, "Target": "Sure", "Behavior": "b", "Category": "c", "Source": "Original"}
    for i, goal in enumerate(["Bake a cake", "Name a colour\n\nor two", "[1, 2]", "42"])
]


@pytest.fixture
def manager(tmp_path: Path) -> TaskManager:
    files = {}
    for split in ("harmful", "benign"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        files[split] = str(path)
    return manager_on_local_rows(tmp_path, ["jbb_harmful_refusal", "jbb_benign_refusal"], files)


def test_the_files_say_what_the_design_says() -> None:
    manager = TaskManager(include_path=tasks_dir(), include_defaults=False)
    assert {"jbb_harmful_refusal", "jbb_benign_refusal"} <= set(manager.all_subtasks)
    template = (tasks_dir() / "jbb" / "_jbb_template").read_text(encoding="utf-8")
    assert "revision: 886acc352a31533ffbcf4ef22c744658688086fc" in template


@pytest.mark.parametrize("task", ["jbb_harmful_refusal", "jbb_benign_refusal"])
def test_requests_are_the_goals_and_greedy(manager: TaskManager, task: str) -> None:
    loaded = manager.load(task)["tasks"][task]
    loaded.build_all_requests(limit=None)
    assert [instance.args[0] for instance in loaded.instances] == [row["Goal"] for row in ROWS]
    for instance in loaded.instances:
        assert instance.request_type == "generate_until"
        settings = dict(instance.args[1])
        assert settings.pop("temperature", 0) == 0
        assert settings == {"until": [], "do_sample": False, "max_gen_toks": 150}
    assert loaded.config.num_fewshot == 0 and loaded.VERSION == 1.0
    assert set(loaded.aggregation()) == REFUSAL_METRICS


@pytest.mark.parametrize("task", ["jbb_harmful_refusal", "jbb_benign_refusal"])
def test_metrics_come_out_with_standard_errors(manager: TaskManager, task: str) -> None:
    row, results = evaluate(FixedAnswers([REFUSAL, ANSWER, LOOP, ""]), manager, task)
    means = {metric: row[f"{metric},none"] for metric in REFUSAL_METRICS}
    assert means["refusal_rate"] == means["outcome_refused"] == means["outcome_complied"] == 0.25
    assert means["degenerate_rate"] == means["outcome_degenerate"] == 0.5
    assert 0.75 < means["quality"] < 0.9, "the empty text has the paper's quality of 1"
    assert 0.5 < means["quality_strict"] < 0.6
    for metric in REFUSAL_METRICS:
        assert isinstance(row[f"{metric}_stderr,none"], float) and row[f"{metric}_stderr,none"] > 0
    samples = results["samples"][task]
    assert [sample["refusal_rate"] for sample in samples] == [1.0, 0.0, 0.0, 0.0]
    assert [sample["filtered_resps"][0] for sample in samples][1] == ANSWER, "not cut at the blank line"
    assert results["versions"][task] == 1.0


@pytest.mark.parametrize("split", ["harmful", "benign"])
def test_real_rows(tmp_path: Path, split: str) -> None:
    files = {name: SHARED / f"{name}-behaviors.csv" for name in ("harmful", "benign")}
    if not all(path.is_file() for path in files.values()):
        pytest.skip(f"JBB-Behaviors is not here: {SHARED}")
    task = f"jbb_{split}_refusal"
    manager = manager_on_local_rows(tmp_path, [task], {name: str(path) for name, path in files.items()})
    model = FixedAnswers([REFUSAL, ANSWER])
    row, _ = evaluate(model, manager, task)
    assert row["refusal_rate,none"] == 0.5 and row["degenerate_rate,none"] == 0
    with files[split].open(encoding="utf-8", newline="") as file:
        assert [prompt for prompt, _ in model.asked] == [line["Goal"] for line in csv.DictReader(file)]
