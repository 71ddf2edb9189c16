"""A sweep in two processes is the sweep in one: in shares, in step, and where one of them fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import launch, main
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.runner import run_sweep
from tests.helpers.checkpoints import save_llama
from tests.helpers.observed import differs
from tests.helpers.processes import launched, torchrun
from tests.helpers.sweeps import small_sweep

CELLS = 7  # the baseline, three of each method but at m = 1, and one control at both ends


def values(model: Path, output: Path, **model_args: Any) -> dict[str, Any]:
    return small_sweep(model, output, model_args={"device": "cpu", "batch_size": 4, **model_args}, random=1)


def summary(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    del document["sha256"]
    return document


def texts(directory: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(directory)): {
            task: [sample["filtered_resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
            for task, samples in json.loads(path.read_text(encoding="utf-8"))["samples"].items()
        }
        for path in sorted(directory.glob("cells/*/*.json"))
    }


def together(model: Path, folder: Path, fault: str = "", **model_args: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Run the sweep in two processes; its directory, and how each process ended."""
    config, output = folder / "config.json", folder / "run"
    config.write_text(json.dumps(values(model, output, **model_args)))
    torchrun("tests.helpers.sweep_in_processes", config, folder / "saw", *filter(None, [fault]))
    return output, [json.loads((folder / f"saw.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("processes") / "tiny")


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    output = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
        manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
        run_sweep(parse_config(values(model, output)), task_manager=manager)
        yield output


@pytest.mark.slow
def test_the_command_under_accelerate_launch(model: Path, alone: Path, tmp_path: Path) -> None:
    config, output = tmp_path / "sweep.yaml", tmp_path / "run"
    config.write_text(json.dumps(values(model, output)))
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = ["accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    done = launched(*launcher, "-m", "lm_eval_cna", "sweep", config)
    assert summary(output) == summary(alone)
    assert texts(output) == texts(alone) and len(summary(output)["measured"]) > CELLS
    assert done.stdout.count("report: ") == 1, "one process reports"


@pytest.mark.slow
def test_in_step_where_the_weights_are_cut(model: Path, alone: Path, tmp_path: Path) -> None:
    output, ended = together(model, tmp_path, tp_plan="auto")
    assert [one["ended"] for one in ended] == ["well", "well"]
    assert ended[0]["computed"] == ended[1]["computed"] > 1
    assert differs(summary(output), summary(alone), 1e-5) is None
    assert differs(texts(output), texts(alone)) is None
    kept = json.loads((output / "cells/cna-m0/chat.json").read_text(encoding="utf-8"))["config"]["cna"]
    assert kept["warnings"] == [] and kept["intervention"]["model"]["columns_sha256"]
    assert kept["weights_sha256"] == json.loads((alone / "manifest.json").read_text())["plan"]["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("faulty", "whose"), [("1", "process 1: "), ("0", "")])
def test_what_a_failed_process_leaves_is_gone_on_with(
    model: Path, alone: Path, tmp_path: Path, faulty: str, whose: str
) -> None:
    output, ended = together(model, tmp_path, fault=faulty)
    assert [one["ended"] for one in ended] == [f"RunError: {whose}a fault on purpose", "well"]
    assert not (output / "summary.json").exists()
    _, ended = together(model, tmp_path)
    assert [one["ended"] for one in ended] == ["well", "well"]
    assert summary(output) == summary(alone)


def test_batches_are_shared(model: Path, alone: Path, tmp_path: Path) -> None:
    output, ended = together(model, tmp_path)
    assert [one["ended"] for one in ended] == ["well", "well"]
    shares = [one["computed"] for one in ended]
    assert min(shares) >= 1 and abs(shares[0] - shares[1]) <= 1
    assert summary(output) == summary(alone) and texts(output) == texts(alone)


@pytest.mark.parametrize(("rank", "who"), [("0", ""), ("1", "process 1: ")])
def test_other_commands_are_refused_in_company(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, rank: str, who: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.processes() == 1, "a number alone says nothing: clusters set it too"
    monkeypatch.setenv("RANK", rank)
    assert (launch.processes(), launch.rank()) == (2, int(rank))
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"{who}error: 2 processes were started together; got 'demo'; allowed: sweep and run share their work; "
        "start this command alone\n"
    )
    assert not (tmp_path / "demo").exists()
