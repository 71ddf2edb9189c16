"""A mixture of experts from the command line: discovery, controls, show, compare, try, cna-hf, and a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import EXPERTS_SCHEMA, Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.report.page import write_report
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep import runner
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.transformer.neurons import SHARED
from tests.helpers.checkpoints import save_mixture
from tests.helpers.sweeps import small_sweep
from tests.models.test_hf import answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixture")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_mixture(folder / "tiny")


@pytest.fixture(scope="module")
def circuit(model: Path, folder: Path) -> Path:
    path = folder / "circuit.json"
    common = ("--model", str(model), "--contrast", "organism", "--output", str(path), "--device", "cpu")
    assert main(["discover", *common, "--fraction", "0.1"]) == 0
    return path


def read(path: Path) -> Circuit:
    found = read_intervention(path)
    assert isinstance(found, Circuit)
    return found


def test_discover(circuit: Path) -> None:
    found = read(circuit)
    assert found.schema_ == EXPERTS_SCHEMA and found.model.architecture == "Qwen2MoeForCausalLM"
    assert found.model.experts is not None and found.model.experts.layers == (0, 2)
    assert len(found.neurons) == round(0.1 * (2 * (5 * 24 + 40) + 48)) == 37
    kinds = {type(neuron.expert).__name__ for neuron in found.neurons}
    assert kinds == {"int", "str", "NoneType"}, "routed, shared and dense neurons compete for places"
    assert found.discovery.universal_filter is not None and found.discovery.universal_filter.neurons
    assert found.model.columns_sha256 is not None


def test_a_control_is_of_the_same_layers_and_kinds(model: Path, circuit: Path, folder: Path) -> None:
    like = read(circuit).prefix(12)
    like.write(folder / "small.json")
    for match in ("layer", "activation"):
        path = folder / f"random-{match}.json"
        common = ("--model", str(model), "--method", "random", "--like", str(folder / "small.json"), "--device", "cpu")
        assert main(["discover", *common, "--contrast", "organism", "--match", match, "--output", str(path)]) == 0
        drawn = read(path)
        kinds = [
            [(n.layer, n.expert if n.expert in (None, SHARED) else "routed") for n in c.neurons] for c in (drawn, like)
        ]
        assert kinds[0] == kinds[1]
        assert not set(drawn.places) & set(like.places) and len(set(drawn.places)) == 12
        universal = like.discovery.universal_filter
        assert universal is not None and not set(drawn.places) & set(universal.neurons)


def test_top_activation_and_vectors(model: Path, circuit: Path, folder: Path) -> None:
    common = ("--model", str(model), "--contrast", "organism", "--device", "cpu")
    top = folder / "top.json"
    assert main(["discover", *common, "--method", "top-activation", "--like", str(circuit), "--output", str(top)]) == 0
    assert len(read(top).neurons) == 37 and read(top).schema_ == EXPERTS_SCHEMA
    path = folder / "vectors.safetensors"
    assert main(["discover", *common, "--method", "caa", "--output", str(path)]) == 0
    vectors = read_intervention(path)
    assert isinstance(vectors, Vectors) and vectors.layers == (0, 1, 2) and vectors.model.experts is None


def test_show_compare_and_try(model: Path, circuit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(circuit)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "routed experts" in shown and "5 experts of 24 neurons" in shown
    assert main(["compare", str(circuit), str(circuit)]) == 0
    assert "1.000" in capsys.readouterr().out
    given = ("--model", str(model), "--circuit", str(circuit), "--prompt", "abc", "--max-tokens", "12")
    assert main(["try", *given, "--multipliers", "0,1,4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out


def test_cna_hf(model: Path, circuit: Path) -> None:
    untouched = answers(CNAHFLM(pretrained=str(model), device="cpu", batch_size=2))
    assert answers(CNAHFLM(circuit=str(circuit), multiplier=1, device="cpu", batch_size=2)) == untouched
    found: dict[str, Any] = {}
    for mode in ("fold", "hook"):
        lm = CNAHFLM(circuit=str(circuit), multiplier=0, mode=mode, device="cpu", batch_size=2)
        assert lm.steering is not None and lm.steering.mode == mode and lm.warnings == ()
        found[mode] = answers(lm)
    assert found["fold"]["generate_until"] == found["hook"]["generate_until"] != untouched["generate_until"]
    scores = [[score for score, _ in found[mode]["loglikelihood"]] for mode in ("fold", "hook")]
    assert torch.allclose(*map(torch.tensor, scores), atol=1e-4)


def test_a_sweep(model: Path, folder: Path) -> None:
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    values = small_sweep(model, folder / "run", random=1, multipliers=[0, 1], limit=2)
    directory = runner.run_sweep(parse_config(values), task_manager=manager)
    said = [json.loads(p.read_text("utf-8"))["config"]["cna"] for p in (directory.path / "cells").rglob("*.json")]
    assert {cell["method"]: cell["mode"] for cell in said} == {
        "baseline": "none",
        "cna": "fold",
        "random": "fold",
        "caa": "hook",
    }
    architecture = directory.manifest()["architecture"]
    assert architecture["mlp_width"] == 48 and architecture["experts"]["count"] == 5
    write_report([directory], directory.path)
    page = (directory.path / "report.md").read_text(encoding="utf-8")
    assert "2 layers of 5 experts of 24 neurons and a shared one of 40, 1 of 48 neurons" in page.replace("\\", "")
    with pytest.raises(SteeringError, match=r"cannot steer rows: layer \d is a mixture of experts"):
        given = {"methods": ["cna"], "circuit": str(directory.path / "circuit.json")}
        rows = {**values, **given, "mode": "rows", "output": str(folder / "rows")}
        runner.run_sweep(parse_config(rows), task_manager=manager)
