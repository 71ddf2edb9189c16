"""A sweep whose responses are judged when all are generated, and judged again by another judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.errors import ConfigError, JudgeError, RunError
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.judge_run import judge_run
from lm_eval_cna.judging.task import LATER
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.summary import read_summary
from lm_eval_cna.sweep.config import SweepConfig, parse_config
from lm_eval_cna.sweep.runner import run_sweep
from tests.helpers.checkpoints import save_llama
from tests.helpers.judge_server import JudgeServer, obliging, verdict
from tests.helpers.local_tasks import manager_on_local_rows

PROMPTS = [f"Bake cake number {n}" for n in range(6)]
CELLS = 3  # baseline, cna at 0, cna at 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    rows = [{"category": "Baking", "forbidden_prompt": prompt} for prompt in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manager_on_local_rows(folder, ["strongreject"], {"test": str(folder / "rows.jsonl")})
    save_llama(folder / "model")
    return folder


def config(folder: Path, output: Path, **more: Any) -> SweepConfig:
    return parse_config(
        {
            "model": str(folder / "model"),
            "model_args": {"device": "cpu", "batch_size": 8},
            "contrast": "organism",
            "fraction": 0.05,
            "universal_filter": False,
            "methods": ["cna"],
            "multipliers": [0, 1, 2],
            "tasks": ["strongreject"],
            "harmless_kl": False,
            "output": output,
            **more,
        }
    )


def manager(folder: Path) -> TaskManager:
    return TaskManager(include_path=[tasks_dir(), folder], include_defaults=False, metadata={"judge": LATER})


@pytest.fixture(scope="module")
def unjudged(folder: Path) -> RunDirectory:
    return run_sweep(config(folder, folder / "unjudged"), task_manager=manager(folder))


def values(directory: RunDirectory, metric: str) -> dict[str, float]:
    return {row.cell: row.value for row in read_summary(directory).measured if row.metric == metric}


def test_a_sweep_judges_all_cells_in_the_end(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    with JudgeServer() as server:
        judge = server.describe(ledger=str(tmp_path / "ledger.sqlite"))
        asked = config(folder, tmp_path / "run", judge=judge)
        directory = run_sweep(
            asked,
            task_manager=manager(folder),
            progress=lambda stage, done, total, detail="": told.append((stage, done, total, detail)),
        )
        questions = len(server.asked)
        again = run_sweep(asked, task_manager=manager(folder))
        assert len(server.asked) == questions, "the ledger answers a rerun"
    assert 0 < questions <= CELLS * len(PROMPTS)
    generated = [index for index, (stage, *_) in enumerate(told) if stage in ("responses", "cells")]
    judged = [index for index, (stage, *_) in enumerate(told) if stage == "judge"]
    assert max(generated) < min(judged), "nothing is judged before all is generated"
    assert told[min(judged)][1:3] == (0, questions), "the count of questions is told before the first is asked"
    assert values(directory, "strongreject_score") == dict.fromkeys(("baseline", "cna-m0", "cna-m2"), 0.625)
    assert values(again, "n_unscored") == dict.fromkeys(("baseline", "cna-m0", "cna-m2"), 0.0)


def test_without_a_judge_the_responses_wait(unjudged: RunDirectory) -> None:
    assert values(unjudged, "strongreject_score") == {}
    assert set(values(unjudged, "refusal_rate")) == {"baseline", "cna-m0", "cna-m2"}
    assert unjudged.manifest()["plan"]["judged"] == ["strongreject"]


def test_the_command_judges_a_run_and_another_judge_replaces_the_figures(
    folder: Path, unjudged: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("LM_EVAL_CNA_CACHE", str(tmp_path))
    untouched = {
        row for row in read_summary(unjudged).measured if row.metric in ("refusal_rate", "quality", "changed_rate")
    }
    with JudgeServer() as server:
        arguments = ["judge", str(unjudged.path), "--judge-model", "local-chat-completions"]
        arguments += ["--judge-model-args", f"model=stub,base_url={server.url},num_concurrent=4"]
        assert main([*arguments, "--judge-dry-run"]) == 0
        count = int(capsys.readouterr().out.split()[0])
        assert server.asked == [] and server.trials == 0
        assert main(arguments) == 0
        assert len(server.asked) == count
        assert set(values(unjudged, "strongreject_score").values()) == {0.625}
        server.behave = lambda question, _n: verdict(question, refusal=1, convincingness=1, specificity=1)
        other = parse_judge(server.describe(model_args={"seed": 5}, ledger=str(tmp_path / "other.sqlite")))
        assert judge_run(unjudged, other) == count
    assert set(values(unjudged, "strongreject_score").values()) == {0.0}
    assert untouched <= set(read_summary(unjudged).measured)
    assert len(list((unjudged.path / "judged").glob("*.json"))) == 2


def test_half_of_the_verdicts_missing_is_counted_and_bounded(unjudged: RunDirectory, tmp_path: Path) -> None:
    def half(question: str, number: int) -> int | str:
        return "I would rather not say." if number % 2 else obliging(question, number)

    with JudgeServer(half) as server:
        judge = parse_judge(server.describe(ledger=str(tmp_path / "half.sqlite"), model_args={"num_concurrent": 1}))
        judge_run(unjudged, judge)
        asked = len(server.asked)
    verdicts = json.loads(next((unjudged.path / "judged").glob(f"{judge.fingerprint[:12]}.json")).read_text())
    unscored = [row for row in verdicts["verdicts"] if row["score"] is None]
    assert len(verdicts["verdicts"]) == CELLS * len(PROMPTS)
    assert asked // 2 <= len(unscored) and all(row["unscored_because"] for row in unscored)
    assert sum(values(unjudged, "n_unscored").values()) == len(unscored)
    scores = values(unjudged, "strongreject_score")
    assert set(scores.values()) == {0.625}
    for cell, score in scores.items():
        low, high = (values(unjudged, f"strongreject_score_{end}")[cell] for end in ("lower", "upper"))
        assert low <= score <= high
    assert any(low < 0.625 for low in values(unjudged, "strongreject_score_lower").values())


def test_a_dead_judge_is_found_out_before_anything_is_generated(folder: Path, tmp_path: Path) -> None:
    judge = {
        "model": "local-chat-completions",
        "model_args": {"model": "stub", "base_url": "http://127.0.0.1:9/v1/chat/completions"},
        "max_retries": 0,
        "ledger": str(tmp_path / "ledger.sqlite"),
    }
    with pytest.raises(JudgeError, match="trial question"):
        run_sweep(config(folder, tmp_path / "run", judge=judge), task_manager=manager(folder))
    assert not (tmp_path / "run" / "cells").exists()


def test_an_unknown_judge_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such lm-eval model; got 'oracle'"):
        run_sweep(config(folder, tmp_path / "run", judge={"model": "oracle"}), task_manager=manager(folder))


def test_a_run_without_judged_tasks_says_so(folder: Path, tmp_path: Path) -> None:
    plain = config(folder, tmp_path / "run", tasks=["organism_refusal"], limit=2)
    directory = run_sweep(plain, task_manager=manager(folder))
    with pytest.raises(RunError, match="no judged task"):
        judge_run(directory, parse_judge({"model": "local-chat-completions"}))
