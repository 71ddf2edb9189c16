"""A run as the report shows it: its manifest, statistics, per-prompt values and circuit, read and checked once."""

from __future__ import annotations

import math
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
from lm_eval_cna.results.summary import RESPONSES, Summary, read_summary

CIRCUIT = "circuit.json"
STRONGEST = "top-activation.json"


@dataclass(frozen=True)
class NearTies:
    """Tokens whose two best candidates were so close that rounding could swap them."""

    tokens: int
    """How many, over all cells."""
    responses: int
    """Generated responses in all."""


@dataclass(frozen=True)
class Run:
    """A run as the report shows it."""

    directory: RunDirectory
    """Where it is."""
    name: str
    """The directory's own name."""
    slug: str
    """A name for its files, unlike that of the other runs."""
    manifest: Manifest
    """What the report shows of the manifest in words."""
    provenance: dict[str, Any]
    """The whole manifest as it is."""
    summary: Summary
    """Every aggregate."""
    evidence: Evidence
    """Every statistic."""
    outcomes: Outcomes
    """Every value per prompt."""
    circuit: Circuit | None
    """The circuit that was steered; None for a run of vectors."""
    strongest: Circuit | None = None
    """The neurons of largest activation, where they were steered too."""
    stability: Stability | None = None
    """Of the circuit over prompts, where it was measured."""
    self_check: str | None = None
    """In one sentence, what was proven of the steering before the run; None where nothing was."""

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were measured."""
        return list(dict.fromkeys(task for task, _ in self.outcomes.questions()))

    @property
    def command(self) -> str:
        """What was typed, to be pasted into a shell."""
        return shlex.join(self.manifest.command)

    @property
    def controlled(self) -> list[float]:
        """The multipliers that controls were asked at."""
        return sorted({cell.multiplier for cell in self.manifest.plan.planned if cell.seed is not None})

    @property
    def near_ties(self) -> NearTies | None:
        """Near-ties of all cells; None where nothing was generated."""
        found = [row for row in self.summary.measured if (row.task, row.metric) == (RESPONSES, "near_ties")]
        tokens = sum(row.value for row in found if math.isfinite(row.value))
        return NearTies(round(tokens), sum(row.n for row in found)) if found else None

    @property
    def facts(self) -> str:
        """The run in one sentence or two, unescaped."""
        plan, architecture = self.manifest.plan, self.manifest.architecture
        at = ", ".join(f"{multiplier:g}" for multiplier in self.controlled)
        controls = f"{plan.random} control seeds, matched by {plan.match}, asked at m = {at}" if at else "no controls"
        model = f"{architecture.name} of {architecture.shape}, {architecture.dtype}"
        # A circuit that was given need not come from the contrast set that the sweep would have discovered from.
        contrast = plan.contrast if self.circuit is None else self.circuit.discovery.contrast or "not stated"
        facts = f"{model}; contrast set {contrast}; {controls}."
        return " ".join((facts, *(f"Note: {note}." for note in self.directory.notes)))

    def trade_offs(self) -> Iterator[TradeOff]:
        """The trade-off of refusal in every task that measures it, if anything was steered."""
        for task, metric in self.outcomes.questions():
            if metric == "refusal_rate" and (found := trade_off(self.evidence, task)).settings:
                yield found


def read_runs(directories: Sequence[RunDirectory], budget: DamageBudget) -> list[Run]:
    """Read finished runs and compute their statistics, which are kept beside them as `evidence.json`.

    Raises:
        RunError: a run is unfinished or damaged.
        InterventionError: its circuit is damaged.
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
        proven = [(float(seen["identity"]), float(seen["change"])) for seen in kept["interventions"].values()]
        mode = str(kept["mode"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory.path / SELF_CHECK} is damaged: {error!r}", do="delete it") from error
    return (
        f"Self-check of {len(proven)} circuits, vectors and controls in mode {mode}: at m = 1 a logit moves by at most "
        f"{max((one for one, _ in proven), default=0):.3g}, at m = 0 by up to "
        f"{min((zero for _, zero in proven), default=0):.3g} or more; every layer was steered once a pass, and the "
        "weights were put back."
    )


def _stability(directory: RunDirectory, circuit: Circuit | None) -> Stability | None:
    """The circuit's stability; a record of another circuit, which a sweep that never began may have left, is none."""
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
