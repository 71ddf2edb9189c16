"""A sweep that asks how special its circuit is: thirds, most active neurons, sizes and folds in one run directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.contrast.splits import split_prompts
from lm_eval_cna.discovery.discover import discover
from lm_eval_cna.discovery.measurement import Settings
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.stability import read_stability, stability_path
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.report.page import write_report
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep import runner
from lm_eval_cna.sweep.config import SweepConfig, parse_config
from lm_eval_cna.transformer.prompts import Rendering
from lm_eval_cna.validation.cross_validation import cross_validate
from tests.helpers.checkpoints import save_llama

pytestmark = pytest.mark.usefixtures("no_environment_report")

THIRDS = ("random-bottom", "random-middle", "random-top")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tiny", layers=3)


def config(model: Path, output: Path, **more: Any) -> SweepConfig:
    kept = {
        "model": str(model),
        "model_args": {"device": "cpu", "batch_size": 32},
        "contrast": "organism",
        "universal_filter": False,
        "methods": ["cna", "top-activation", "random", *THIRDS],
        "random": 1,
        "top_k": [3, 6],
        "folds": 2,
        "multipliers": [0],
        "tasks": ["organism_refusal"],
        "limit": 2,
        "harmless_kl": False,
        "output": str(output),
    }
    return parse_config({**kept, **more})


@pytest.fixture(scope="module")
def whole(model: Path, manager: TaskManager, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    output = tmp_path_factory.mktemp("whole") / "run"
    return runner.run_sweep(config(model, output), task_manager=manager, command=["typed"])


def circuit_of(run: RunDirectory, name: str) -> Circuit:
    found = read_intervention(run.path / name)
    assert isinstance(found, Circuit)
    return found


def test_every_kind_of_control_is_in_the_same_sweep(whole: RunDirectory) -> None:
    keys = {cell["key"] for cell in whole.manifest()["plan"]["cells"]}
    lines = ["cna", "top-activation", *(f"{kind}-s0" for kind in ("random", *THIRDS))]
    assert keys == {"baseline", *(f"{line}-k{size}-m0" for line in lines for size in (3, 6))}
    found = circuit_of(whole, "circuit.json")
    for layer, kind in enumerate(THIRDS):
        control = circuit_of(whole, f"controls/{kind}-0.json")
        assert control.layers == (layer,) and control.discovery.match == kind.removeprefix("random-")
        assert len(control.neurons) == len(found.neurons) == 6
        assert not {n[:2] for n in control.neurons} & {n[:2] for n in found.neurons}


def test_the_most_active_neurons_are_those_of_discover(whole: RunDirectory, model: Path) -> None:
    lm = CNAHFLM(pretrained=str(model), device="cpu")
    found = circuit_of(whole, "circuit.json")
    expected = discover(
        lm.model,
        lm.tokenizer,
        load_contrast("organism"),
        method="top-activation",
        like=found,
        settings=Settings(Rendering(add_bos_token=lm.add_bos_token)),
    )
    strongest = circuit_of(whole, "top-activation.json")
    assert strongest.method == "top-activation" and strongest.sha256 == expected.sha256
    assert strongest.discovery.like_sha256 == found.sha256


def test_the_circuit_s_stability_is_kept_beside_it(whole: RunDirectory, model: Path) -> None:
    lm = CNAHFLM(pretrained=str(model), device="cpu")
    contrast, settings = load_contrast("organism"), Settings(Rendering(add_bos_token=lm.add_bos_token))
    circuit, expected = cross_validate(
        lm.model, lm.tokenizer, contrast, split_prompts(contrast, 2), top_k=6, universal_filter=False, settings=settings
    )
    kept = read_stability(stability_path(whole.path / "circuit.json"))
    assert kept.circuit_sha256 == circuit.sha256 == circuit_of(whole, "circuit.json").sha256
    assert (kept.jaccard, kept.jaccard_shuffled) == (expected.jaccard, expected.jaccard_shuffled)
    assert [fold.circuit_sha256 for fold in kept.folds] == [fold.circuit_sha256 for fold in expected.folds]
    assert kept.folds[0].kl == pytest.approx(expected.folds[0].kl, abs=1e-5)


def test_the_report_answers(whole: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
    text = write_report([whole], whole.path).read_text("utf-8")
    section = text[text.index("### How special is the circuit?") :]
    assert "of largest mean" in section and "lie in the bottom third (layer 0)" in section
    assert "random neurons of its own layers" in section and "random neurons of the top third" in section
    assert "Found without one of 2 folds of organism, circuits of 6 neurons" in section


def test_a_finished_sweep_is_not_measured_again(
    whole: RunDirectory, model: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    path = stability_path(whole.path / "circuit.json")
    before = path.read_bytes()
    for name in ("measure", "assess"):
        monkeypatch.setattr(f"lm_eval_cna.sweep.interventions.{name}", never)
    runner.run_sweep(config(model, whole.path), task_manager=manager)
    assert path.read_bytes() == before


def test_a_given_circuit_brings_its_stability_along(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path
) -> None:
    plan: dict[str, Any] = {"folds": None, "methods": ["cna"], "top_k": [], "circuit": str(tmp_path / "circuit.json")}
    for name in ("circuit.json", "circuit.stability.json"):
        shutil.copy(whole.path / name, tmp_path / name)
    run = runner.run_sweep(config(model, tmp_path / "run", **plan), task_manager=manager)
    kept = read_stability(run.path / "circuit.stability.json")
    assert kept == read_stability(tmp_path / "circuit.stability.json")
    # Of another circuit it says nothing.
    circuit_of(whole, "circuit.json").prefix(4).write(tmp_path / "circuit.json")
    run = runner.run_sweep(config(model, tmp_path / "other", **plan), task_manager=manager)
    assert not run.has("circuit.stability.json")


def test_a_model_without_a_middle_says_so(manager: TaskManager, tmp_path: Path) -> None:
    shallow = save_llama(tmp_path / "shallow")
    with pytest.raises(ConfigError, match="a model of 2 layers has no middle third"):
        runner.run_sweep(config(shallow, tmp_path / "run", folds=None), task_manager=manager)
