"""Reads a run for the report: manifest, statistics, values per prompt and circuit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_cna.analysis.evidence import Evidence, collect, write_evidence
from lm_eval_cna.analysis.outcomes import Outcomes, read_outcomes
from lm_eval_cna.analysis.tradeoff import TradeOff, trade_off
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import RunError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.stability import Stability, read_stability, stability_path
from lm_eval_cna.report.escape import slug
from lm_eval_cna.results.directory import SELF_CHECK, RunDirectory
from lm_eval_cna.results.reading import Manifest, check_hash, read_manifest, read_plan
from lm_eval_cna.results.summary import Summary, read_summary

CIRCUIT = "circuit.json"
STRONGEST = "top-activation.json"


@dataclass(frozen=True)
class Run:
    """Everything that the report needs of a run."""

    directory: RunDirectory
    """The run directory."""
    name: str
    """Name of the directory."""
    slug: str
    """Name for the files of this run, different from those of other runs."""
    manifest: Manifest
    """The parts of the manifest that the report puts in words."""
    provenance: dict[str, Any]
    """The whole manifest."""
    summary: Summary
    """All aggregates."""
    evidence: Evidence
    """All statistics."""
    outcomes: Outcomes
    """All values per prompt."""
    circuit: Circuit | None
    """The steered circuit; None for a run of vectors."""
    strongest: Circuit | None = None
    """The neurons of largest activation, if they were steered."""
    stability: Stability | None = None
    """Cross-validation of the circuit, if it was measured."""
    self_check: str | None = None
    """Result of the self-check in a sentence; None if it was not run."""

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were measured."""
        return list(dict.fromkeys(task for task, _ in self.outcomes.questions()))

    @property
    def command(self) -> str:
        """The command of the run, quoted for a shell."""
        return shlex.join(self.manifest.command)

    @property
    def controlled(self) -> list[float]:
        """The multipliers of the controls."""
        return sorted({cell.multiplier for cell in self.manifest.plan.planned if cell.seed is not None})

    @property
    def facts(self) -> str:
        """The run in one sentence or two, unescaped."""
        plan, architecture = self.manifest.plan, self.manifest.architecture
        at = ", ".join(f"{multiplier:g}" for multiplier in self.controlled)
        controls = f"{plan.random} control seeds, matched by {plan.match}, asked at m = {at}" if at else "no controls"
        model = f"{architecture.name} of {architecture.shape}, {architecture.dtype}"
        # A given circuit may come from another contrast set than the one in the plan.
        contrast = plan.contrast if self.circuit is None else self.circuit.discovery.contrast or "not stated"
        facts = f"{model}; contrast set {contrast}; {controls}."
        return " ".join((facts, *(f"Note: {note}." for note in self.directory.notes)))

    def trade_offs(self) -> Iterator[TradeOff]:
        """The trade-off of every task that measures refusal, if anything was steered."""
        for task, metric in self.outcomes.questions():
            if metric == "refusal_rate" and (found := trade_off(self.evidence, task)).settings:
                yield found


def read_runs(directories: Sequence[RunDirectory], budget: DamageBudget) -> list[Run]:
    """Read finished runs, compute their statistics and write them beside the runs as `evidence.json`.

    Raises:
        RunError: a run is unfinished or damaged.
        InterventionError: the circuit of a run is damaged.
    """
    taken: set[str] = set()
    return [_read(directory, budget, taken) for directory in directories]


def _read(directory: RunDirectory, budget: DamageBudget, taken: set[str]) -> Run:
    summary, provenance = read_summary(directory), directory.manifest()
    manifest = read_manifest(directory)
    outcomes, evidence = read_outcomes(directory), collect(directory, budget=budget)
    write_evidence(directory, evidence)
    name = directory.path.resolve().name
    circuit = _circuit(directory, CIRCUIT)
    return Run(
        directory=directory,
        name=name,
        slug=slug(name, taken),
        manifest=manifest,
        provenance=provenance,
        summary=summary,
        evidence=evidence,
        outcomes=outcomes,
        circuit=circuit,
        strongest=_circuit(directory, STRONGEST),
        stability=_stability(directory, circuit),
        self_check=_self_check(directory),
    )


def _self_check(directory: RunDirectory) -> str | None:
    if not directory.has(SELF_CHECK):
        return None
    kept = directory.read_json(SELF_CHECK)
    try:
        checked = [(float(seen["identity"]), float(seen["change"])) for seen in kept["interventions"].values()]
        mode = str(kept["mode"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory.path / SELF_CHECK} is damaged: {error!r}", do="delete it") from error
    return (
        f"Self-check of {len(checked)} circuits, vectors and controls in mode {mode}: at m = 1 a logit moves by at "
        f"most {max((one for one, _ in checked), default=0):.3g}, at m = 0 by up to "
        f"{min((zero for _, zero in checked), default=0):.3g} or more; every layer was steered once a pass, and the "
        "weights were put back."
    )


def _stability(directory: RunDirectory, circuit: Circuit | None) -> Stability | None:
    """The stability record of this circuit; a record of another circuit is ignored."""
    path = stability_path(directory.path / CIRCUIT)
    if circuit is None or not path.is_file():
        return None
    found = read_stability(path)
    return found if found.circuit_sha256 == circuit.sha256 else None


def _circuit(directory: RunDirectory, name: str) -> Circuit | None:
    found = read_intervention(directory.path / name) if directory.has(name) else None
    if found is not None:
        check_hash(directory, read_plan(directory), name, found.sha256)
    return found if isinstance(found, Circuit) else None
