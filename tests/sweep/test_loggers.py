"""Cells go to lm-eval's own loggers: one run a cell, named by the cell, once, and never silently lost."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker, evaluation_tracker
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep import loggers, runner
from lm_eval_cna.sweep.config import SweepConfig, parse_config
from tests.helpers.checkpoints import save_llama

pytestmark = pytest.mark.usefixtures("no_environment_report")

CELLS = ["baseline", "cna-m0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tiny")


def config(model: Path, output: Path, **more: Any) -> SweepConfig:
    return parse_config(
        {
            "model": str(model),
            "model_args": {"device": "cpu", "batch_size": 8},
            "contrast": "organism",
            "fraction": 0.05,
            "universal_filter": False,
            "methods": ["cna"],
            "multipliers": [0, 1],
            "tasks": ["organism_refusal", {"task": "organism_knowledge", "num_fewshot": 0, "chat_template": False}],
            "limit": 3,
            "harmless_kl": False,
            "output": str(output),
            **more,
        }
    )


@pytest.fixture(scope="module")
def run(model: Path, manager: TaskManager, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A sweep that nobody has logged."""
    return runner.run_sweep(config(model, tmp_path_factory.mktemp("sweep") / "run"), task_manager=manager)


class FakeLogger:
    """Remembers every call, as W&B's and Trackio's loggers are called."""

    made: list[FakeLogger]  # set anew for each test

    def __init__(self, arguments: dict[str, Any], config_arguments: dict[str, Any] | None = None) -> None:
        self.arguments, self.config_arguments = arguments, config_arguments
        self.results: dict[str, Any] = {}
        self.samples: dict[str, Any] = {}
        self.logged = self.finished = 0
        self.run = self
        self.made.append(self)

    def post_init(self, results: dict[str, Any]) -> None:
        self.results = results

    def log_eval_result(self) -> None:
        self.logged += 1

    def log_eval_samples(self, samples: dict[str, Any]) -> None:
        self.samples = samples

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLogger]:
    """Both loggers replaced, both libraries installed as far as anybody can see."""

    class Fake(FakeLogger):
        made: list[FakeLogger] = []  # noqa: RUF012

    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setattr(loggers, "WandbLogger", Fake)
    monkeypatch.setattr(loggers, "TrackioLogger", Fake)
    return Fake


@pytest.fixture
def copied(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """The run's own directory, its log of what was logged removed."""
    (run.path / loggers.LOGGED).unlink(missing_ok=True)
    return run


def test_a_sweep_logs_each_cell_as_one_run(
    model: Path, manager: TaskManager, copied: RunDirectory, fake: type[FakeLogger]
) -> None:
    wanted = {"wandb_args": {"project": "p"}, "wandb_config_args": {"lr": 1}}
    runner.run_sweep(config(model, copied.path, **wanted), task_manager=manager)
    assert [one.arguments for one in fake.made] == [
        {"project": "p", "group": copied.path.name, "name": key} for key in CELLS
    ]
    for one in fake.made:
        assert (one.logged, one.finished, one.config_arguments) == (1, 1, {"lr": 1})
        assert set(one.results["results"]) == {"organism_refusal", "organism_knowledge"} == set(one.samples)
        assert "samples" not in one.results and one.results["lm_eval_version"]
        assert len(one.samples["organism_refusal"]) == 3
    own = copied.read_json("cells/cna-m0/chat.json")["results"]["organism_refusal"]
    logged = fake.made[1].results["results"]["organism_refusal"]
    assert {name: logged[name] for name in own} == own
    assert logged["changed_rate,none"] >= 0  # from the summary, which lm-eval does not know
    # A continued sweep has nothing to log; another project has everything.
    runner.run_sweep(config(model, copied.path, **wanted), task_manager=manager)
    assert len(fake.made) == 2
    runner.run_sweep(config(model, copied.path, wandb_args={"project": "q"}), task_manager=manager)
    assert [one.arguments["project"] for one in fake.made] == ["p", "p", "q", "q"]


def test_a_name_and_a_group_of_the_users(model: Path, copied: RunDirectory, fake: type[FakeLogger]) -> None:
    given = config(model, copied.path, trackio_args={"project": "p", "name": "llama", "group": "g"})
    loggers.CellLogs(given).publish(copied)
    assert [one.arguments["name"] for one in fake.made] == ["llama-baseline", "llama-cna-m0"]
    assert {one.arguments["group"] for one in fake.made} == {"g"}


def test_a_logger_that_fails_is_one_line_and_the_rest_is_logged_later(
    model: Path, copied: RunDirectory, fake: type[FakeLogger], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FakeLogger) -> None:
        if self.arguments["name"] == "cna-m0":
            raise OSError("no route to host")

    monkeypatch.setattr(fake, "log_eval_result", fails)
    wanted = loggers.CellLogs(config(model, copied.path, wandb_args={}))
    with pytest.raises(RunError, match=r"cannot log cna-m0: OSError: no route to host.*same command logs"):
        wanted.publish(copied)
    assert [one.finished for one in fake.made] == [1, 1]
    monkeypatch.undo()
    assert list(copied.read_json(loggers.LOGGED).values()) == [["baseline"]]


def test_every_sample_has_every_metric_of_its_task() -> None:
    results = {"configs": {"judged": {"metric_list": [{"metric": "a"}, {"metric": "b"}]}}}
    assert loggers._complete(results, {"judged": [{"a": 1.0}, {"a": 0.0, "b": 2.0}]}) == {
        "judged": [{"a": 1.0, "b": None}, {"a": 0.0, "b": 2.0}]
    }


def test_lm_evals_own_files(model: Path, manager: TaskManager, copied: RunDirectory, tmp_path: Path) -> None:
    wanted = {"hf_hub_log_args": {"output_path": str(tmp_path / "files")}}
    runner.run_sweep(config(model, copied.path, **wanted), task_manager=manager)
    folders = sorted((tmp_path / "files").iterdir())
    assert [folder.name.rpartition("tiny__")[2] for folder in folders] == CELLS
    for folder in folders:
        (results,) = folder.glob("results_*.json")
        document = json.loads(results.read_text(encoding="utf-8"))
        assert document["model_source"] == "cna-hf" and document["chat_template_sha"]
        assert set(document["task_hashes"]) == set(document["results"])
        names = sorted(path.name.rpartition("_20")[0] for path in folder.glob("samples_*.jsonl"))
        assert names == ["samples_organism_knowledge", "samples_organism_refusal"]
        (samples,) = folder.glob("samples_organism_refusal_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == 3 and rows[0]["arguments"]["gen_args_0"]["arg_0"]
    before = sorted((tmp_path / "files").rglob("*"))
    runner.run_sweep(config(model, copied.path, **wanted), task_manager=manager)
    assert sorted((tmp_path / "files").rglob("*")) == before


class FakeHub:
    """What EvaluationTracker asks of the hub."""

    def __init__(self, fail: bool = False) -> None:
        self.fail, self.uploaded, self.folders = fail, [], []  # type: ignore[var-annotated]

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def create_repo(self, **_: Any) -> None:
        if self.fail:
            raise PermissionError("the token may not write")

    def upload_file(self, *, path_in_repo: str, **_: Any) -> None:
        self.uploaded.append(path_in_repo)

    def upload_folder(self, *, path_in_repo: str, **_: Any) -> None:
        self.folders.append(path_in_repo)


PUSH = {"push_results_to_hub": True, "push_samples_to_hub": True, "token": "hf_secret"}


def test_the_hub_gets_every_cell_and_one_card(
    model: Path, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, cards = FakeHub(), []
    monkeypatch.setattr(EvaluationTracker, "_api", staticmethod(lambda token=None: hub))
    monkeypatch.setattr(EvaluationTracker, "recreate_metadata_card", lambda self: cards.append(self.details_repo))
    loggers.CellLogs(config(model, copied.path, hf_hub_log_args=PUSH)).publish(copied)
    assert len(hub.uploaded) == 2 and len(hub.folders) == 4 and cards == ["me/lm-eval-results"]
    assert "hf_secret" not in (copied.path / loggers.LOGGED).read_text(encoding="utf-8")
    assert (copied.path / "lm-eval").is_dir()  # lm-eval uploads only what it has written somewhere


def test_an_upload_whose_error_lm_eval_swallows_is_an_error(
    model: Path, copied: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaluationTracker, "_api", staticmethod(lambda token=None: FakeHub(fail=True)))
    wanted = loggers.CellLogs(config(model, copied.path, hf_hub_log_args=PUSH))
    with pytest.raises(RunError, match=r"cannot log baseline: PermissionError: the token may not write"):
        wanted.publish(copied)


@pytest.mark.parametrize("name", ["results_", "samples_organism_knowledge_"])
def test_a_file_that_lm_eval_did_not_write_is_an_error(
    model: Path, copied: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name.startswith(name):
            raise OSError(28, "No space left on device")
        return opened(path, *args, **kwargs)

    opened = Path.open
    monkeypatch.setattr(Path, "write_text" if name == "results_" else "open", full)
    monkeypatch.setattr(
        evaluation_tracker, "open", lambda path, *args, **kwargs: full(Path(path), *args, **kwargs), raising=False
    )
    files = {"hf_hub_log_args": {"output_path": str(tmp_path / "files")}}
    with pytest.raises(RunError, match=f"cannot log baseline: OSError: lm-eval did not write .*{name}"):
        loggers.CellLogs(config(model, copied.path, **files)).publish(copied)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"wandb_args": {"project": "p"}}, "wandb_args needs the package wandb: .*; pip install wandb"),
        ({"trackio_args": {}}, "trackio_args needs the package trackio"),
        ({"wandb_config_args": {"a": 1}}, "wandb_config_args without wandb_args"),
        ({"hf_hub_log_args": {"colour": "blue"}}, "hf_hub_log_args; got 'colour'; allowed: .*output_path"),
        ({"hf_hub_log_args": {"push_results_to_hub": True}}, "token is not defined"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(
    tmp_path: Path, wanted: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    with pytest.raises(ConfigError, match=says):
        runner.run_sweep(config(tmp_path / "no such model", tmp_path / "run", **wanted))
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_one_run_for_all_cells_is_refused(model: Path, tmp_path: Path, fake: type[FakeLogger]) -> None:
    with pytest.raises(ConfigError, match="every cell is a run of its own"):
        loggers.CellLogs(config(model, tmp_path, wandb_args={"id": "x"}))


@pytest.mark.parametrize("flag", ["--wandb_args", "--wandb-args"])
def test_the_command_line_knows_lm_evals_spelling(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    status = main(["sweep", "--model", "m", "--output", str(tmp_path / "run"), flag, "project=p"])
    assert status == 2 and "needs the package wandb" in capsys.readouterr().err
