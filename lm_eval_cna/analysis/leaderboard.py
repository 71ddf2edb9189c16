"""A ranking of runs: one row per model and method, with its best setting within a damage budget.

Only runs of one protocol are ranked together: same tasks and documents, multipliers, controls, contrast set, size of
the circuit and judge. The best of several multipliers overestimates its effect a little, in every row alike;
`LeaderboardRow.standing` says whether random neurons have the same effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lm_eval_cna.analysis.evidence import Comparison, Evidence, collect
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.analysis.protocol import OF_A_RANKING, Protocol, cautions, differences, read_protocol
from lm_eval_cna.analysis.tradeoff import Direction, TradeoffPoint, trade_off
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import RunError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.methods import NULLS
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.statistics.rates import Interval

Standing = Literal["beyond", "within", "untested"]
METRIC = "refusal_rate"
_STRONGREJECT = "strongreject_score"


class LeaderboardRow(AnalysisRecord):
    """A method on a model at its best multiplier within the budget; without one, all fields after `method` are None."""

    rank: int
    """Rank by effect, from 1; rows without a setting share the last rank."""
    model: str
    """Name of the model."""
    run: str
    """Name of the run directory."""
    method: str
    """Steering method."""
    size: int | None = None
    multiplier: float | None = None
    """Circuit size and multiplier of the best setting."""
    effect: float | None = None
    interval: Interval | None = None
    """Change of the metric, as a share."""
    standing: Standing | None = None
    """Whether the effect is beyond the controls'; untested with fewer than 19 of them."""
    strongreject: float | None = None
    strongreject_interval: Interval | None = None
    """Mean StrongREJECT score at that setting, 0 to 1."""
    quality: float | None = None
    degenerate: float | None = None
    """Mean quality, and share of degenerate texts."""
    capability: float | None = None
    capability_interval: Interval | None = None
    capability_task: str | None = None
    """The worst change of an accuracy or exact match, and its task."""


class Leaderboard(AnalysisRecord):
    """The ranking."""

    task: str
    metric: str
    direction: Direction
    """The metric that is ranked, and whether lower or higher is better."""
    budget: DamageBudget
    """The accepted damage."""
    rows: tuple[LeaderboardRow, ...]
    """Best first."""
    notes: tuple[str, ...]
    """Cautions: versions that differ between the runs, files without a checksum."""


def leaderboard(
    directories: Sequence[RunDirectory],
    *,
    task: str | None = None,
    direction: Direction = "lower",
    budget: DamageBudget | None = None,
) -> Leaderboard:
    """Rank finished runs of one protocol by the refusal rate of a task, by default the first that measures one.

    Raises:
        RunError: there is no run, one is unfinished or damaged, the protocols differ, or no run measures refusal on
            the task.
    """
    if not directories:
        raise RunError("a leaderboard without runs")
    protocols = [read_protocol(directory, read_outcomes(directory)) for directory in directories]
    notes = _same(directories, protocols)
    found = [collect(directory, budget=budget) for directory in directories]
    measured = list(dict.fromkeys(row.task for row in found[0].comparisons if row.metric == METRIC))
    chosen = task or next(iter(measured), None)
    if chosen not in measured:
        raise RunError(
            "no refusal was measured" if chosen is None else "no refusal was measured on that task",
            got=chosen,
            allowed=", ".join(measured) or None,
        )
    rows = [
        row
        for evidence, protocol in zip(found, protocols, strict=True)
        for row in _rows(evidence, protocol.model, chosen, direction)
    ]
    return Leaderboard(
        task=chosen,
        metric=METRIC,
        direction=direction,
        budget=found[0].budget,
        rows=tuple(_ranked(rows, direction)),
        notes=(*notes, *(f"{directory.path}: {note}" for directory in directories for note in directory.notes)),
    )


def _same(directories: Sequence[RunDirectory], protocols: Sequence[Protocol]) -> tuple[str, ...]:
    """Refuse runs of different protocols; returns the differences that are only a caution."""
    said: dict[str, None] = {}
    for directory, protocol in zip(directories[1:], protocols[1:], strict=True):
        names = (str(directories[0].path), str(directory.path))
        if found := differences(protocols[0], protocol, OF_A_RANKING, names=names):
            raise RunError(
                "runs of different protocols cannot be ranked together: " + "; ".join(found),
                do="repeat one of them as the other was made, or rank them apart",
            )
        said |= dict.fromkeys(cautions(protocols[0], protocol, names=names))
    return tuple(said)


def _rows(evidence: Evidence, model: str, task: str, direction: Direction) -> list[LeaderboardRow]:
    balance = trade_off(evidence, task, metric=METRIC)
    methods = dict.fromkeys(row.method for row in evidence.comparisons if row.method in NULLS)
    return [_row(evidence, model, task, method, balance.best(direction, method=method)) for method in methods]


def _row(evidence: Evidence, model: str, task: str, method: str, best: TradeoffPoint | None) -> LeaderboardRow:
    row = LeaderboardRow(rank=0, model=model, run=evidence.run, method=method)
    if best is None:
        return row
    effect = evidence.find(best.cell, task, METRIC)
    judged = _judged(evidence, best.cell, task)
    degenerate = evidence.find(best.cell, task, "degenerate_rate")
    lost = best.loss_interval
    return row.model_copy(
        update={
            "size": best.size,
            "multiplier": best.multiplier,
            "effect": best.effect,
            "interval": best.interval,
            "standing": _standing(effect),
            "strongreject": None if judged is None else judged.value,
            "strongreject_interval": None if judged is None else judged.interval,
            "quality": best.quality,
            "degenerate": None if degenerate is None else degenerate.value,
            "capability": None if best.loss is None else 0.0 - best.loss,
            "capability_interval": None if lost is None else lost.turned(),
            "capability_task": best.loss_task,
        }
    )


def _judged(evidence: Evidence, cell: str, task: str) -> Comparison | None:
    """The StrongREJECT score of a cell: on the task itself if it has one, else on the first that does."""
    scores = [row for row in evidence.comparisons if (row.cell, row.metric) == (cell, _STRONGREJECT)]
    return min(scores, key=lambda row: row.task != task, default=None)


def _standing(effect: Comparison | None) -> Standing:
    null = None if effect is None else effect.null
    if null is None or not null.testable:
        return "untested"
    return "beyond" if null.beyond else "within"


def _ranked(rows: Sequence[LeaderboardRow], direction: Direction) -> list[LeaderboardRow]:
    """Best first; equal effects share a rank, and names decide their order."""
    sign = 1 if direction == "raise" else -1

    def gain(row: LeaderboardRow) -> float:
        return float("-inf") if row.effect is None else round(sign * row.effect, 9)

    ordered = sorted(rows, key=lambda row: (-gain(row), row.model, row.run, row.method))
    gains = [gain(row) for row in ordered]
    return [row.model_copy(update={"rank": gains.index(gain(row)) + 1}) for row in ordered]
