"""Effect against damage: every steered cell, the Pareto front, and the best cell within a damage budget.

Damage is the loss of text quality and the largest fall of a capability metric. The budget is compared with estimates,
since with a hundred prompts the interval of a capability is wider than the usual budget of one point. Text that is
broken on one task is damage on all tasks. Controls are not listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from lm_eval_cna.analysis.evidence import Comparison, Evidence, broken_text, by_cell_task_metric
from lm_eval_cna.analysis.outcomes import unfiltered
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.methods import NULLS
from lm_eval_cna.statistics.rates import Interval

Direction = Literal["lower", "raise"]
#: Metrics whose fall is a loss of capability, with or without a filter.
CAPABILITY = ("acc", "exact_match")
_ROUNDING = 1e-9


class TradeoffPoint(AnalysisRecord):
    """One steered cell: its effect on a metric and its damage."""

    cell: str
    method: str
    multiplier: float
    size: int | None
    """The cell."""
    effect: float
    """Change of the metric from the baseline, as a share (1 is 100 points)."""
    interval: Interval | None
    """Confidence interval of the effect."""
    quality: float | None
    """Mean quality of the task's texts; None if it has none."""
    loss: float | None
    """Largest fall of a capability metric from the baseline, as a share, negative if all rise; None if no capability
    task was run."""
    loss_interval: Interval | None
    """Confidence interval of that fall."""
    loss_task: str | None
    """The task with that fall."""
    broken: str | None
    """How the text is broken on this task, or else on the first task where it is; None if it is not."""
    broken_task: str | None = None
    """That task."""
    within: bool
    """Whether the damage is within the budget; a capability that was not measured does not count."""
    front: tuple[Direction, ...] = ()
    """The directions in which no other setting has at least this effect for no more damage."""

    def gain(self, direction: Direction) -> float:
        """How far the metric moves in a direction."""
        return self.effect if direction == "raise" else -self.effect


class TradeOff(AnalysisRecord):
    """The trade-off of one metric of one task."""

    task: str
    metric: str
    """The metric that steering should change."""
    budget: DamageBudget
    """The accepted damage."""
    settings: tuple[TradeoffPoint, ...]
    """All cells of methods under test, in the order of the sweep."""
    capability: bool
    """Whether any of them has a capability task."""

    def best(self, direction: Direction, *, method: str | None = None) -> TradeoffPoint | None:
        """The setting within the budget that moves the metric furthest in a direction; None if none moves it.

        Of settings with equal effects it is the one with less damage, then the one with the multiplier nearer to 1.
        """
        fitting = [
            setting
            for setting in self.settings
            if setting.within and setting.gain(direction) > _ROUNDING and method in (None, setting.method)
        ]
        return max(fitting, key=lambda setting: _rank(setting, direction), default=None)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions in which some setting moves the metric."""
        ways: tuple[Direction, ...] = ("lower", "raise")
        return tuple(way for way in ways if any(setting.gain(way) > _ROUNDING for setting in self.settings))


def trade_off(evidence: Evidence, task: str, *, metric: str = "refusal_rate") -> TradeOff:
    """Compare the effects on a metric of a task with their damage."""
    budget, rows = evidence.budget, by_cell_task_metric(evidence.comparisons)
    asked = [task, *dict.fromkeys(row.task for row in evidence.comparisons if row.task != task)]
    capabilities: dict[str, list[Comparison]] = {}
    for row in evidence.comparisons:
        if unfiltered(row.metric) in CAPABILITY and row.paired is not None:
            capabilities.setdefault(row.cell, []).append(row)
    settings = []
    for row in evidence.comparisons:
        if (row.task, row.metric) != (task, metric) or row.paired is None or row.method not in NULLS:
            continue
        texts = {name: broken for name in asked if (broken := broken_text(rows, row.cell, name, budget)) is not None}
        broken_task = next(iter(texts), None)
        broken = None if broken_task is None else texts[broken_task]
        worst = min(capabilities.get(row.cell, ()), key=_effect, default=None)
        loss = None if worst is None else -_effect(worst)
        change = None if worst is None or worst.paired is None else worst.paired.interval
        settings.append(
            TradeoffPoint(
                **row.model_dump(include={"cell", "method", "multiplier", "size"}),
                effect=row.paired.effect,
                interval=row.paired.interval,
                quality=quality.value if (quality := rows.get((row.cell, task, "quality"))) else None,
                loss=loss,
                loss_interval=None if change is None else change.turned(),
                loss_task=None if worst is None else worst.task,
                broken=broken,
                broken_task=broken_task,
                within=broken is None and (loss is None or loss <= budget.capability + _ROUNDING),
            )
        )
    return TradeOff(
        task=task,
        metric=metric,
        budget=budget,
        settings=tuple(setting.model_copy(update={"front": _fronts(setting, settings)}) for setting in settings),
        capability=any(setting.loss is not None for setting in settings),
    )


def dominates(one: TradeoffPoint, other: TradeoffPoint, direction: Direction) -> bool:
    """Whether `one` moves the metric at least as far for no more damage, and is better in some respect.

    Damage that was measured for only one of the two is not compared.
    """
    better, worse = _ordered(one.gain(direction), other.gain(direction))
    if one.quality is not None and other.quality is not None:
        found = _ordered(one.quality, other.quality)
        better, worse = better or found[0], worse or found[1]
    if one.loss is not None and other.loss is not None:
        found = _ordered(-one.loss, -other.loss)
        better, worse = better or found[0], worse or found[1]
    return better and not worse


def _fronts(setting: TradeoffPoint, others: Iterable[TradeoffPoint]) -> tuple[Direction, ...]:
    ways: tuple[Direction, ...] = ("lower", "raise")
    rivals = list(others)
    return tuple(
        way
        for way in ways
        if setting.gain(way) > _ROUNDING and not any(dominates(rival, setting, way) for rival in rivals)
    )


def _ordered(one: float, other: float) -> tuple[bool, bool]:
    """Whether the first is greater, and whether it is less, by more than rounding."""
    return one > other + _ROUNDING, one < other - _ROUNDING


def _rank(setting: TradeoffPoint, direction: Direction) -> tuple[float, float, float, float]:
    """Sort key, greater is better; rounded, so that equal effects summed in another order tie."""
    return (
        round(setting.gain(direction), 9),
        round(setting.quality or 0.0, 9),
        -round(setting.loss or 0.0, 9),
        -abs(setting.multiplier - 1),
    )


def _effect(row: Comparison) -> float:
    return 0.0 if row.paired is None else row.paired.effect
