"""The project's own check on the organism: a repeated run passes, half of its circuit fails, and the stored baseline.

Every kind of CPU trains another organism, so a run is held against a baseline that was made here. The stored one knows
its own model by its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.analysis.baseline import read_baseline
from lm_eval_cna.analysis.regression import check_run
from lm_eval_cna.cli import main
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.organism.store import ensure_organism
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep.config import parse_config, read_config
from lm_eval_cna.sweep.runner import run_sweep

pytestmark = pytest.mark.usefixtures("no_environment_report")


@pytest.fixture(scope="module")
def stored(repo_root: Path) -> Path:
    return repo_root / "results" / "baselines" / "organism-instruct.json"


def swept(stored: Path, output: Path, manager: TaskManager, **changes: Any) -> RunDirectory:
    values = read_config(stored.with_suffix(".yaml"))
    config = parse_config({**values, "model": str(ensure_organism().instruct), "output": output, **changes})
    return run_sweep(config, task_manager=manager)


@pytest.fixture(scope="module")
def whole(stored: Path, tmp_path_factory: pytest.TempPathFactory, manager: TaskManager) -> RunDirectory:
    return swept(stored, tmp_path_factory.mktemp("whole") / "run", manager)


@pytest.fixture(scope="module")
def baseline(whole: RunDirectory) -> Path:
    made = whole.path.parent / "baseline.json"
    assert main(["check", str(whole.path), "--against", str(made), "--update"]) == 0
    return made


@pytest.mark.slow
def test_a_run_with_other_control_seeds_passes(
    stored: Path, tmp_path: Path, manager: TaskManager, baseline: Path
) -> None:
    again = swept(stored, tmp_path / "run", manager, first_seed=1000)
    assert main(["check", str(again.path), "--against", str(baseline)]) == 0
    found = check_run(again, read_baseline(baseline))
    assert {finding.what for finding in found.findings} >= {"effect", "quality", "capability", "controls"}
    assert not found.notes


def test_half_a_circuit_fails_the_check(
    stored: Path, tmp_path: Path, manager: TaskManager, whole: RunDirectory, baseline: Path
) -> None:
    circuit = read_intervention(whole.path / "circuit.json")
    assert isinstance(circuit, Circuit)
    broken = circuit.model_copy(update={"neurons": circuit.neurons[::2]})
    broken.write(tmp_path / "half.json")
    run = swept(stored, tmp_path / "run", manager, circuit=str(tmp_path / "half.json"))
    assert main(["check", str(run.path), "--against", str(baseline)]) == 1
    failures = check_run(run, read_baseline(baseline)).failures
    assert ("effect", "cna-m0", "organism_refusal") in {(found.what, found.cell, found.task) for found in failures}


def test_the_stored_baseline_knows_its_model(whole: RunDirectory, stored: Path) -> None:
    """It passes whole where this CPU trains the same organism; on every other the effect and its null are the same."""
    kept = read_baseline(stored)
    found = check_run(whole, kept)
    if kept.protocol.weights == whole.manifest()["plan"]["weights_sha256"]:
        assert found.passed
    else:
        assert "the weights of instruct are not the same in the baseline and the run" in found.notes
    of_refusal = [finding for finding in found.findings if finding.task == "organism_refusal"]
    assert len(of_refusal) == 6 and all(finding.passed for finding in of_refusal)


def test_the_stored_baseline_holds_no_text(stored: Path) -> None:
    kept = read_baseline(stored)
    assert kept.protocol.model == "instruct" and kept.separations
    assert all(score is None or isinstance(score, float) for row in kept.answers for score in row.scores)
    assert stored.stat().st_size < 20_000
