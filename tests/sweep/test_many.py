"""Many sweeps from one file, one after another: every run is a sweep of its own, and all are checked first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.many import run_sweeps
from lm_eval_cna.sweep.runner import run_sweep
from tests.helpers.checkpoints import save_llama
from tests.sweep.test_runner import assert_equal_runs, stored, values


@pytest.fixture(scope="module", autouse=True)
def manager() -> Iterator[TaskManager]:
    known = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
            patched.setenv(name, "")
            patched.delenv(name)
        patched.setattr("lm_eval_cna.sweep.prepare.TaskManager", lambda **_: known)
        patched.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
        yield known


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save_llama(folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]


def write(path: Path, runs: list[dict[str, Any]], **more: Any) -> Path:
    defaults = {**values(Path("-"), Path("-")), "tasks": ["organism_refusal"], "methods": ["cna"], **more}
    del defaults["model"], defaults["output"]
    path.write_text(yaml.safe_dump({"defaults": defaults, "output": str(path.parent / "board"), "runs": runs}))
    return path


def test_every_run_is_a_sweep_of_its_own(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "board.yaml", [{"model": str(models[0])}, {"model": str(models[1]), "multipliers": [0, 1]}])
    assert main(["sweep", str(path)]) == 0
    out, err = capsys.readouterr()
    runs = [RunDirectory(tmp_path / "board" / name) for name in ("first", "second")]
    directories = f"{runs[0].path} {runs[1].path}"
    assert f"lm-eval-cna leaderboard {directories} --output {tmp_path}/board/leaderboard" in out
    assert "checks: 2/2" in err and "second: responses: 8/8" in err
    assert err.index("checks: 2/2") < err.index("first: responses")
    for run, model, multipliers in zip(runs, models, ([0, 1, 2], [0, 1]), strict=True):
        asked = values(model, tmp_path / f"alone-{model.name}", multipliers=multipliers)
        alone = run_sweep(parse_config({**asked, "tasks": ["organism_refusal"], "methods": ["cna"]}))
        assert stored(run) == stored(alone)
        assert_equal_runs(run, alone)
        assert run.has("report.html")
    shutil.rmtree(runs[1].path)
    assert main(["leaderboard", str(runs[0].path), "--output", str(tmp_path / "board" / "leaderboard")]) == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "no/such-model"}, "run such-model: cannot load the model"),
        ({"circuit": "missing.json", "methods": ["cna"]}, "no such intervention file"),
        ({"contrast": "missing"}, "missing"),
        ({"tasks": ["organism_refusl"]}, "run third: unknown task; got 'organism_refusl'"),
        ({"model_args": {"device": "cuda:99"}}, "run third: device; got 'cuda:99'"),
        ({"randm": 1}, "runs.1: randm"),
    ],
)
def test_all_runs_are_checked_before_the_first_begins(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any], says: str
) -> None:
    own = {} if "model" in wrong else {"output": str(tmp_path / "board" / "third")}
    path = write(tmp_path / "board.yaml", [{"model": str(models[0])}, {"model": str(models[1]), **own, **wrong}])
    assert main(["sweep", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "board" / "first").exists()


def test_a_run_that_fails_leaves_the_others_alone(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models[1], broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    path = write(tmp_path / "board.yaml", [{"model": str(broken)}, {"model": str(models[0])}])
    assert main(["sweep", str(path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 runs failed: broken: " in last and "the others are finished" in last
    assert RunDirectory(tmp_path / "board" / "first").has("summary.json")


def test_a_model_of_the_command_line_is_refused(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "board.yaml", [{"model": str(models[0])}])
    assert main(["sweep", str(path), "--model", "m"]) == 2
    assert "--model with a file of many runs; each run says its own" in capsys.readouterr().err


def test_vllm_is_not_computed_elsewhere(models: list[Path], tmp_path: Path) -> None:
    asked = parse_config({"model": str(models[0]), "output": str(tmp_path / "run"), "engine": "vllm"})
    with pytest.raises(ConfigError, match=r"run run: .*vllm"):
        run_sweeps([asked], executors=lambda stop: pytest.fail("began"))
