"""A sweep on vLLM is the sweep on transformers: same circuit, same controls, same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")

from lm_eval.tasks import TaskManager

from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.runner import run_sweep
from tests.helpers.sweeps import small_sweep
from tests.vllm.checkpoints import save
from tests.vllm.conftest import ENGINE

pytestmark = pytest.mark.usefixtures("no_environment_report")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "tiny", "llama", layers=2)


def sweep(model: Path, output: Path, manager: TaskManager, engine: str, **more: Any) -> RunDirectory:
    arguments: dict[str, Any] = {"device": "cpu", "dtype": "float32", "batch_size": 8}
    own: dict[str, Any] = {
        "engine": engine,
        "model_args": {**ENGINE, "max_model_len": 512} if engine == "vllm" else arguments,
        "fraction": 0.1,
        "random": 1,
    }
    values = small_sweep(model, output, **(own | more))
    return run_sweep(parse_config(values), task_manager=manager, command=["typed"])


@pytest.fixture(scope="module")
def theirs(model: Path, manager: TaskManager, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return sweep(model, tmp_path_factory.mktemp("hf") / "run", manager, "hf")


@pytest.fixture(scope="module")
def ours(model: Path, manager: TaskManager, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return sweep(model, tmp_path_factory.mktemp("vllm") / "run", manager, "vllm")


def samples(directory: RunDirectory, name: str) -> dict[str, list[Any]]:
    return directory.read_json(name)["samples"]


def cells(directory: RunDirectory) -> list[str]:
    return sorted(str(path.relative_to(directory.path)) for path in (directory.path / "cells").rglob("*.json"))


def test_the_same_interventions_and_cells(ours: RunDirectory, theirs: RunDirectory) -> None:
    mine, other = ours.manifest()["plan"], theirs.manifest()["plan"]
    assert mine["interventions"] == other["interventions"]
    assert [cell["key"] for cell in mine["cells"]] == [cell["key"] for cell in other["cells"]]
    # Nothing that one engine has answered can be taken for the other's.
    assert not {cell["context"] for cell in mine["cells"]} & {cell["context"] for cell in other["cells"]}
    assert cells(ours) == cells(theirs) and len(cells(ours)) > 7
    assert not ours.has("harmless_kl.json")


def test_every_answer(ours: RunDirectory, theirs: RunDirectory) -> None:
    texts: set[str] = set()
    for name in cells(ours):
        mine, other = samples(ours, name), samples(theirs, name)
        assert mine.keys() == other.keys()
        for task in mine:
            for one, two in zip(mine[task], other[task], strict=True):
                assert one["arguments"] == two["arguments"]
                if task == "organism_refusal":
                    assert one["resps"] == two["resps"], name
                    texts.add(json.dumps(one["resps"]))
                else:
                    for (likely,), (likelier,) in zip(one["resps"], two["resps"], strict=True):
                        assert float(likely[0]) == pytest.approx(float(likelier[0]), abs=2e-3), name
    assert len(texts) > 8, "the cells' answers do not differ: nothing was steered"


def test_a_given_circuit_needs_no_transformers_model(
    theirs: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded with transformers")

    monkeypatch.setattr(CNAHFLM, "__init__", fail)
    given = {"circuit": str(theirs.path / "circuit.json"), "methods": ["cna", "random"], "tasks": ["organism_refusal"]}
    run = sweep(model, tmp_path / "run", manager, "vllm", **given)
    hashes = theirs.manifest()["plan"]["interventions"]
    assert run.manifest()["plan"]["interventions"] == {
        name: hashes[name] for name in ("circuit.json", "controls/random-0.json")
    }
    for name in cells(run):
        assert [s["resps"] for s in samples(run, name)["organism_refusal"]] == [
            s["resps"] for s in samples(theirs, name)["organism_refusal"]
        ]
