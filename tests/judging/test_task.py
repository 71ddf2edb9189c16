"""The judged tasks under lm-eval: on local rows, with a judge that answers over HTTP, and by the stock command."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import ConfigError, JudgeError
from lm_eval_cna.judging import asking
from lm_eval_cna.resources import tasks_dir
from tests.helpers.checkpoints import save_llama
from tests.helpers.judge_server import JudgeServer, obliging, verdict
from tests.helpers.local_tasks import ANSWER, REFUSAL, REFUSAL_METRICS, FixedAnswers, evaluate, manager_on_local_rows

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TASKS = ["strongreject", "jbb_strongreject"]
PROMPTS = [f"Bake cake number {n}" for n in range(12)]
JUDGED = {"strongreject_score", "judge_refusal", "judge_convincingness", "judge_specificity", "outcome_evaded"}
ALWAYS = {"strongreject_score_lower", "strongreject_score_upper", "unscored", "n_unscored"} | REFUSAL_METRICS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Task files on local rows."""
    rows = [
        {"category": "Baking", "source": "custom", "forbidden_prompt": prompt, "Goal": prompt, "Target": "Sure"}
        for prompt in PROMPTS
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manager_on_local_rows(tmp_path, TASKS, {"test": str(path), "harmful": str(path)})
    return tmp_path


def manager_with(folder: Path, judge: Any) -> TaskManager:
    metadata = {} if judge is None else {"judge": judge}
    return TaskManager(include_path=[tasks_dir(), folder], include_defaults=False, metadata=metadata)


def test_the_files_name_their_pins() -> None:
    text = (tasks_dir() / "strongreject" / "strongreject.yaml").read_text(encoding="utf-8")
    assert re.search(r"githubusercontent\.com/alexandrasouly/strongreject/[0-9a-f]{40}/strongreject_dataset/", text)
    manager = TaskManager(include_path=tasks_dir(), include_defaults=False)
    assert set(TASKS) <= set(manager.all_subtasks)


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_the_prompts_and_greedy(folder: Path, task: str) -> None:
    loaded = manager_with(folder, "later").load(task)["tasks"][task]
    loaded.build_all_requests(limit=None)
    assert [instance.args[0] for instance in loaded.instances] == PROMPTS
    for instance in loaded.instances:
        settings = dict(instance.args[1])
        assert settings.pop("temperature", 0) == 0
        assert settings == {"until": [], "do_sample": False, "max_gen_toks": 150}
    assert loaded.VERSION == 1.0 and loaded.config.num_fewshot == 0
    rating = {"rating10_score", "rating10_score_lower", "rating10_score_upper", "judge_rating"}
    assert set(loaded.aggregation()) == set(loaded.higher_is_better()) == JUDGED | ALWAYS | rating


@pytest.mark.parametrize("task", TASKS)
def test_scores_come_out_with_standard_errors_and_keywords_beside_them(folder: Path, task: str) -> None:
    def by_response(question: str, _: int) -> str:
        if REFUSAL in question:
            return verdict(question, refusal=1, convincingness=1, specificity=1)
        return verdict(question, refusal=0, convincingness=5, specificity=3)

    with JudgeServer(by_response) as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"), model_args={"auth_token": "sesame"})
        row, results = evaluate(FixedAnswers([REFUSAL, ANSWER]), manager_with(folder, judge), task)
        assert server.trials == 1 and len(server.asked) == 12
        assert Counter(server.asked).most_common(1)[0][1] == 1
        assert all(
            f"| {prompt}\n" in question
            for prompt, question in zip(PROMPTS, sorted(server.asked, key=cake_in), strict=True)
        )
    assert row["strongreject_score,none"] == row["strongreject_score_lower,none"] == 0.375
    assert row["strongreject_score_upper,none"] == 0.375
    assert row["strongreject_score_stderr,none"] > 0
    assert row["judge_refusal,none"] == row["refusal_rate,none"] == 0.5
    assert row["judge_convincingness,none"] == 3 and row["judge_specificity,none"] == 2
    assert row["unscored,none"] == row["n_unscored,none"] == 0
    assert not any(name.startswith(("rating10", "judge_rating")) for name in row)
    assert [sample["strongreject_score"] for sample in results["samples"][task]] == [0, 0.75] * 6
    kept = results["configs"][task]["metadata"]["judge"]
    assert kept["rubric_version"].startswith("strongreject/1/") and len(kept["fingerprint"]) == 64
    assert "sesame" not in json.dumps(results, default=str)
    assert results["n-samples"][task]["effective"] == 12


def test_an_answer_without_use_is_evaded_and_not_complied(folder: Path) -> None:
    def useless(question: str, _: int) -> str:
        return verdict(question, refusal=0, convincingness=1, specificity=1)

    with JudgeServer(useless) as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"))
        row, _ = evaluate(FixedAnswers([REFUSAL, ANSWER]), manager_with(folder, judge), "strongreject")
    assert row["outcome_evaded,none"] == row["outcome_refused,none"] == 0.5
    assert row["outcome_complied,none"] == row["strongreject_score,none"] == 0


def cake_in(question: str) -> int:
    return int(question.split("Bake cake number ")[1].split("\n")[0])


def test_a_judge_that_fails_half_the_time_costs_no_score(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=lambda _: None))
    seen: Counter[str] = Counter()

    def every_other_time(question: str, _: int) -> int | str:
        seen[question] += 1
        return [obliging(question, 0), 500][seen[question] % 2]

    with JudgeServer(every_other_time) as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"))
        row, _ = evaluate(FixedAnswers([ANSWER]), manager_with(folder, judge), "strongreject")
    assert set(seen.values()) == {2}
    assert row["strongreject_score,none"] == 0.625 and row["n_unscored,none"] == 0


def test_what_stays_unscored_is_counted_and_bounded(folder: Path) -> None:
    def third(question: str, _: int) -> int | str:
        return (500, "As I see it, 5 of 5.", obliging(question, 0))[min(cake_in(question) % 4, 2)]

    with JudgeServer(third) as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"), max_retries=1)
        row, results = evaluate(FixedAnswers([ANSWER]), manager_with(folder, judge), "strongreject")
    assert row["n_unscored,none"] == 6 and row["unscored,none"] == 0.5
    assert row["strongreject_score,none"] == 0.625, "the mean is over scored documents"
    assert row["strongreject_score_lower,none"] == 0.3125 and row["strongreject_score_upper,none"] == 0.8125
    samples = results["samples"]["strongreject"]
    assert ["strongreject_score" in sample for sample in samples] == [False, False, True, True] * 3
    assert row["quality,none"] == 1 and row["sample_len"] == 12


def test_the_other_rubric(folder: Path) -> None:
    with JudgeServer() as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"), rubric="rating-10")
        row, _ = evaluate(FixedAnswers([ANSWER]), manager_with(folder, judge), "jbb_strongreject")
    assert row["rating10_score,none"] == pytest.approx(0.7) and row["judge_rating,none"] == 7
    assert "strongreject_score,none" not in row


def test_a_rerun_asks_nothing(folder: Path) -> None:
    with JudgeServer() as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"))
        rows = [evaluate(FixedAnswers([ANSWER]), manager_with(folder, judge), "strongreject")[0] for _ in range(2)]
        assert len(server.asked) == 12 and server.trials == 1, "one judge a process"
    assert rows[0] == rows[1]


def test_without_a_judge_or_without_its_server_nothing_is_generated(folder: Path) -> None:
    model = FixedAnswers([ANSWER])
    with pytest.raises(ConfigError, match=r"needs a judge and none is given.*--metadata"):
        evaluate(model, manager_with(folder, None), "strongreject")
    with JudgeServer() as server:
        gone = server.describe()
    with pytest.raises(JudgeError, match="no connection"):
        evaluate(model, manager_with(folder, gone), "strongreject")
    with pytest.raises(ConfigError, match="rubric"):
        evaluate(model, manager_with(folder, {**gone, "rubric": "x"}), "strongreject")
    assert model.asked == []


def test_judged_later_the_task_has_what_needs_no_judge(folder: Path) -> None:
    row, _ = evaluate(FixedAnswers([REFUSAL]), manager_with(folder, "later"), "strongreject")
    assert row["refusal_rate,none"] == 1
    assert not any("score" in name or "judge" in name for name in row)


def test_predict_only_asks_no_judge(folder: Path) -> None:
    import lm_eval

    with JudgeServer() as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"))
        results = lm_eval.simple_evaluate(
            FixedAnswers([ANSWER]),
            tasks=["strongreject"],
            task_manager=manager_with(folder, judge),
            predict_only=True,
        )
        assert results is not None and len(results["samples"]["strongreject"]) == 12
        assert server.asked == []


def test_real_rows(tmp_path: Path) -> None:
    path = SHARED / "strongreject" / "strongreject_dataset.csv"
    if not path.is_file():
        pytest.skip(f"StrongREJECT is not here: {path}")
    manager_on_local_rows(tmp_path, ["strongreject"], {"test": str(path)})
    model = FixedAnswers([REFUSAL, ANSWER])
    with JudgeServer() as server:
        judge = server.describe(ledger=str(tmp_path / "judge.sqlite"))
        row, _ = evaluate(model, manager_with(tmp_path, judge), "strongreject")
        assert len(server.asked) == 313
    assert row["sample_len"] == 313 and row["n_unscored,none"] == 0
    with path.open(encoding="utf-8", newline="") as file:
        assert [prompt for prompt, _ in model.asked] == [line["forbidden_prompt"] for line in csv.DictReader(file)]


@pytest.mark.slow
def test_the_stock_command_with_a_judge_that_half_fails(folder: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "model")

    seen: Counter[str] = Counter()

    def moody(question: str, _: int) -> int | str:
        seen[question] += 1
        return 503 if cake_in(question) % 3 == 0 else [obliging(question, 0), 500][seen[question] % 2]

    with JudgeServer(moody) as server:
        judge = server.describe(ledger=str(folder / "judge.sqlite"), max_retries=2)
        command = [sys.executable, "-m", "lm_eval_cna", "run", "--model", "cna-hf", "--tasks", "strongreject"]
        command += ["--model_args", f"pretrained={tmp_path / 'model'},max_length=256", "--device", "cpu"]
        command += ["--include_path", str(folder), "--metadata", json.dumps({"judge": judge})]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [[cell.strip() for cell in line.split("|")] for line in done.stdout.split("\n")]
    table = {cells[5]: cells[7] for cells in lines if len(cells) > 9}
    assert len(seen) == 12 and Counter(seen.values()) == {2: 8, 3: 4}
    assert float(table["n_unscored"]) == 4 and float(table["strongreject_score"]) == 0.625
    assert "4 of 12 documents unscored: no reply: HTTP status 503" in done.stderr
