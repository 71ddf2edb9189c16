"""A sweep checks its steering before it computes, and its results hold the self-check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.report.page import write_report
from lm_eval_cna.results.directory import SELF_CHECK, RunDirectory
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep import runner
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.validation import self_check
from tests.helpers.checkpoints import save_llama
from tests.helpers.sweeps import small_sweep

pytestmark = pytest.mark.usefixtures("no_environment_report")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tiny")


def values(model: Path, output: Path, **more: Any) -> dict[str, Any]:
    few: dict[str, Any] = {"multipliers": [0, 1], "tasks": ["organism_refusal"], "limit": 2, "harmless_kl": False}
    return small_sweep(model, output, **(few | more))


@pytest.mark.parametrize("mode", ["rows", "fold", "hook"])
def test_results_hold_the_self_check(model: Path, manager: TaskManager, tmp_path: Path, mode: str) -> None:
    more = {"mode": mode, "methods": ["cna", "random"]} if mode == "fold" else {"mode": mode}
    run = runner.run_sweep(parse_config(values(model, tmp_path / "run", **more)), task_manager=manager)
    kept = run.read_json(SELF_CHECK)
    wanted = {"circuit.json", "controls/random-0.json", "controls/random-1.json"}
    assert kept["interventions"].keys() == wanted | ({"vectors.safetensors"} if mode != "fold" else set())
    for cell, file in (("cna-m0", "circuit.json"), ("random-s1-m0", "controls/random-1.json")):
        results = run.read_json(f"cells/{cell}/chat.json")
        shown = results["config"]["cna"]["self_check"]
        assert shown == {"mode": mode, "noise": 0.0, **kept["interventions"][file]}
        assert shown["identity"] == 0 and shown["change"] > 0
    assert run.read_json("cells/baseline/chat.json")["config"]["cna"]["self_check"] == {"mode": mode, "noise": 0.0}
    text = write_report([run], tmp_path / "report").read_text(encoding="utf-8")
    assert f"in mode {mode}: at m = 1 a logit moves by at most 0, at m = 0 by up to" in text


def test_a_sweep_whose_steering_does_nothing_computes_nothing(
    model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            self_check,
            "RowSteering",
            lambda model, settings, architecture: RowSteering(model, [Setting() for _ in settings], architecture),
        )
        with pytest.raises(SteeringError, match=r"self-check: circuit\.json does not steer layer"):
            runner.run_sweep(parse_config(values(model, tmp_path / "run")), task_manager=manager)
    run = RunDirectory(tmp_path / "run")
    assert not run.has(SELF_CHECK) and not list(run.path.glob("cells/*"))
    monkeypatch.setattr(self_check, "steer", lambda model, setting, **how: steer(model, Setting(), **how))
    with pytest.raises(SteeringError, match="self-check"):  # nor does it in another mode
        runner.run_sweep(parse_config(values(model, tmp_path / "other", mode="hook")), task_manager=manager)


def test_a_finished_sweep_is_checked_again_only_where_the_file_is_gone(
    model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(values(model, tmp_path / "run", methods=["cna"]))
    run = runner.run_sweep(config, task_manager=manager)
    before = json.dumps(run.read_json(SELF_CHECK))
    with monkeypatch.context() as patch:
        patch.setattr(runner, "self_check_sweep", None)
        runner.run_sweep(config, task_manager=manager)
    assert json.dumps(run.read_json(SELF_CHECK)) == before
    (run.path / SELF_CHECK).unlink()  # as a user does who is told that it is damaged
    runner.run_sweep(config, task_manager=manager)
    assert json.dumps(run.read_json(SELF_CHECK)) == before
