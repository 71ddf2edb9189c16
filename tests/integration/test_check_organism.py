"""The project's own check: the organism against its committed baseline, whole and with half of its circuit."""

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

NAME = "organism-instruct"


@pytest.fixture(scope="module")
def baseline(repo_root: Path) -> Path:
    return repo_root / "results" / "baselines" / f"{NAME}.json"


def swept(repo_root: Path, output: Path, manager: TaskManager, **changes: Any) -> RunDirectory:
    values = read_config(repo_root / "results" / "baselines" / f"{NAME}.yaml")
    config = parse_config({**values, "model": str(ensure_organism().instruct), "output": output, **changes})
    return run_sweep(config, task_manager=manager)


@pytest.fixture(scope="module")
def whole(repo_root: Path, tmp_path_factory: pytest.TempPathFactory, manager: TaskManager) -> RunDirectory:
    """Other control seeds than the baseline's."""
    return swept(repo_root, tmp_path_factory.mktemp("whole") / "run", manager, first_seed=1000)


@pytest.mark.slow
def test_the_organism_is_what_it_was(whole: RunDirectory, baseline: Path) -> None:
    assert main(["check", str(whole.path), "--against", str(baseline)]) == 0
    found = check_run(whole, read_baseline(baseline))
    assert {finding.what for finding in found.findings} >= {"effect", "quality", "capability", "controls"}


@pytest.mark.slow
def test_half_a_circuit_fails_the_check(
    repo_root: Path, tmp_path: Path, manager: TaskManager, whole: RunDirectory, baseline: Path
) -> None:
    circuit = read_intervention(whole.path / "circuit.json")
    assert isinstance(circuit, Circuit)
    broken = circuit.model_copy(update={"neurons": circuit.neurons[::2]})
    broken.write(tmp_path / "half.json")
    run = swept(repo_root, tmp_path / "run", manager, circuit=str(tmp_path / "half.json"))
    assert main(["check", str(run.path), "--against", str(baseline)]) == 1
    failures = check_run(run, read_baseline(baseline)).failures
    assert ("effect", "cna-m0", "organism_refusal") in {(found.what, found.cell, found.task) for found in failures}


def test_the_baseline_holds_no_text(baseline: Path) -> None:
    kept = read_baseline(baseline)
    assert kept.protocol.model == "instruct" and kept.separations
    assert all(score is None or isinstance(score, float) for row in kept.answers for score in row.scores)
    assert baseline.stat().st_size < 20_000
