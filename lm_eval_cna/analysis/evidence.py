"""All statistics of one run in one object: what reports and leaderboards read, stored as `evidence.json`.

Each metric has, in every cell, its value with an interval, the paired difference from the baseline, a Holm-adjusted p
and the rank among the controls. The p against controls is not corrected for several multipliers, so a claim should
rest on one multiplier chosen before the run, as a rule m = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal

from pydantic import Field

from lm_eval_cna.analysis.outcomes import Outcomes, read_outcomes, unfiltered
from lm_eval_cna.analysis.verdicts import Claim, DamageBudget, Verdict, is_broken, trend_sentence, verdict
from lm_eval_cna.errors import RunError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.methods import NULLS
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.statistics.dose_response import Trend, trend
from lm_eval_cna.statistics.holm import holm
from lm_eval_cna.statistics.null_distribution import Null, against_controls
from lm_eval_cna.statistics.paired import Document, Kind, Paired, compare
from lm_eval_cna.statistics.power import Power, smallest_effect
from lm_eval_cna.statistics.rates import LEVEL, Interval, mean_interval, wilson

EVIDENCE_SCHEMA: Literal["lm-eval-cna/evidence/1"] = "lm-eval-cna/evidence/1"
#: Metrics that verdicts are about. For a task with none of them it is its first metric.
CLAIMED = ("refusal_rate", "strongreject_score", "rating10_score", "acc", "exact_match")
#: Shares of prompts assumed to change against the effect, for which the power is given.
OPPOSITE = (0.0, 0.05)


class Comparison(AnalysisRecord):
    """One metric of one task in one cell."""

    cell: str
    method: str
    multiplier: float
    seed: int | None
    size: int | None
    """The cell, as in the summary."""
    task: str
    metric: str
    """What was measured."""
    kind: Kind
    """Whether the metric is a rate of documents or a mean."""
    n: int
    """Documents with a value."""
    value: float
    """Mean over those documents."""
    interval: Interval | None
    """Wilson's for a rate, the bootstrap's for a mean; None for a mean of a control or of a single document."""
    paired: Paired | None = None
    """Difference from the baseline; None for the baseline itself and for means of controls."""
    p_holm: float | None = None
    """Holm-adjusted p; None for controls and the baseline."""
    null: Null | None = None
    """Rank among the controls at the same multiplier and size; None if there are none."""


Comparisons = Mapping[tuple[str, str, str], Comparison]


class MetricTrend(AnalysisRecord):
    """The dose-response of one method on one metric."""

    task: str
    metric: str
    method: str
    size: int | None
    """The metric, and the method whose multiplier was varied."""
    trend: Trend
    """Result of Page's test."""
    text: str
    """The result as a sentence."""


class MetricPower(AnalysisRecord):
    """The effects on a rate that the prompts of a task could have shown."""

    task: str
    metric: str
    """The rate."""
    power: tuple[Power, ...]
    """The smallest detectable effect for each share in `OPPOSITE`."""


class Evidence(AnalysisRecord):
    """The statistics of a run."""

    schema_: Literal["lm-eval-cna/evidence/1"] = Field(default=EVIDENCE_SCHEMA, alias="schema")
    run: str
    """Name of the run directory."""
    model: str
    """Name of the model, as it was given to the sweep."""
    judge: str | None
    """Fingerprint of the judge whose verdicts are used, if there is one."""
    level: float
    """Confidence level of all intervals."""
    budget: DamageBudget
    """What counts as damage in the verdicts."""
    comparisons: tuple[Comparison, ...]
    trends: tuple[MetricTrend, ...]
    powers: tuple[MetricPower, ...]
    verdicts: tuple[Verdict, ...]

    def find(self, cell: str, task: str, metric: str) -> Comparison | None:
        """The comparison of a cell, task and metric; None if there is none."""
        return next((c for c in self.comparisons if (c.cell, c.task, c.metric) == (cell, task, metric)), None)


def collect(
    directory: RunDirectory, *, judge: str | None = None, budget: DamageBudget | None = None, level: float = LEVEL
) -> Evidence:
    """Compute the statistics of a finished run.

    `judge` is the start of a judge's fingerprint, for a run that several judged.

    Raises:
        RunError: the directory is no run, has no baseline cell, or one of its files is damaged.
    """
    budget = budget or DamageBudget()
    outcomes = read_outcomes(directory, judge=judge)
    if BASELINE.key not in outcomes.cells:
        raise RunError(f"no results of the baseline in {directory.path}", do="run the sweep again")
    comparisons = [
        row for task, metric in outcomes.questions() for row in _compare_all(outcomes, task, metric, level=level)
    ]
    asked = [(task, metric) for task, metric in outcomes.questions() if metric in claimed(outcomes, task)]
    said = outcomes.judge
    return Evidence(
        run=directory.path.resolve().name,
        model=str(directory.manifest()["plan"].get("model")),
        judge=None if said is None else said.get("fingerprint"),
        level=level,
        budget=budget,
        comparisons=tuple(comparisons),
        trends=tuple(_trends(outcomes, asked)),
        powers=tuple(_powers(comparisons, asked)),
        verdicts=tuple(_verdicts(comparisons, asked, budget, level)),
    )


def write_evidence(directory: RunDirectory, evidence: Evidence) -> None:
    """Write the statistics into the run directory as `evidence.json`."""
    directory.write_json("evidence.json", evidence.model_dump(mode="json", by_alias=True))


def read_evidence(directory: RunDirectory) -> Evidence:
    """Read `evidence.json`.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return Evidence.model_validate(directory.read_json("evidence.json"))
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{directory.path / 'evidence.json'} is damaged: {first}", do="make the report again") from error


def claimed(outcomes: Outcomes, task: str) -> tuple[str, ...]:
    """The metrics of a task that verdicts are about, with or without a filter."""
    metrics = [metric for of, metric in outcomes.questions() if of == task]
    found = tuple(metric for metric in metrics if unfiltered(metric) in CLAIMED)
    return found or tuple(metrics[:1])


def by_cell_task_metric(comparisons: Iterable[Comparison]) -> Comparisons:
    """Comparisons by (cell, task, metric)."""
    return {(row.cell, row.task, row.metric): row for row in comparisons}


def broken_text(evidence: Comparisons, cell: str, task: str, budget: DamageBudget) -> str | None:
    """What `is_broken` says of a cell's text on a task."""

    def value(cell: str, metric: str) -> float | None:
        found = evidence.get((cell, task, metric))
        return None if found is None else found.value

    quality, degenerate = value(cell, "quality"), value(cell, "degenerate_rate")
    return is_broken(
        quality, value(BASELINE.key, "quality"), degenerate, value(BASELINE.key, "degenerate_rate"), budget
    )


def _compare_all(outcomes: Outcomes, task: str, metric: str, *, level: float) -> list[Comparison]:
    kind, untouched = outcomes.kind(task, metric), outcomes.of(BASELINE.key, task, metric)
    rows: list[Comparison] = []
    for key, cell in outcomes.cells.items():
        values = outcomes.of(key, task, metric)
        if not values:
            continue
        total, brief = sum(values.values()), cell.is_control and kind == "mean"
        if kind == "rate":
            interval: Interval | None = wilson(round(total), len(values), level=level)
        else:
            interval = None if brief else mean_interval(list(values.values()), level=level)
        paired = None if cell == BASELINE or brief else compare(values, untouched, kind, level=level)
        rows.append(
            Comparison(
                cell=key,
                **cell._asdict(),
                task=task,
                metric=metric,
                kind=kind,
                n=len(values),
                value=fmean(values.values()),
                interval=interval,
                paired=paired,
                null=null_among(outcomes, cell, NULLS[cell.method], task, metric, paired.effect)
                if cell.method in NULLS and paired
                else None,
            )
        )
    adjusted = holm({row.cell: row.paired.p for row in rows if row.method in NULLS and row.paired})
    return [row.model_copy(update={"p_holm": adjusted.get(row.cell)}) for row in rows]


def null_among(
    outcomes: Outcomes, cell: Cell, controls: str, task: str, metric: str, effect: float | None
) -> Null | None:
    """Rank a cell's effect among the controls of one kind at its multiplier and size; None if there are none."""
    if effect is None:
        return None
    untouched = outcomes.of(BASELINE.key, task, metric)
    effects = [
        one
        for key, control in outcomes.cells.items()
        if (control.method, control.multiplier, control.size) == (controls, cell.multiplier, cell.size)
        if (one := mean_change(outcomes.of(key, task, metric), untouched)) is not None
    ]
    return against_controls(effect, effects) if effects else None


def mean_change(values: Mapping[Document, float], untouched: Mapping[Document, float]) -> float | None:
    """Mean difference from the untouched model over the common documents; None if there are none."""
    differences = [values[document] - untouched[document] for document in untouched if document in values]
    return fmean(differences) if differences else None


def _trends(outcomes: Outcomes, asked: list[tuple[str, str]]) -> list[MetricTrend]:
    lines = dict.fromkeys((cell.method, cell.size) for cell in outcomes.cells.values() if cell.method in NULLS)
    found = []
    for task, metric in asked:
        for method, size in lines:
            doses = {
                cell.multiplier: outcomes.of(key, task, metric)
                for key, cell in outcomes.cells.items()
                if cell == BASELINE or (cell.method, cell.size) == (method, size)
            }
            tested = trend({multiplier: values for multiplier, values in doses.items() if values})
            if tested is not None:
                text = trend_sentence(tested, task=task, metric=metric, method=method, kind=outcomes.kind(task, metric))
                found.append(MetricTrend(task=task, metric=metric, method=method, size=size, trend=tested, text=text))
    return found


def _powers(comparisons: list[Comparison], asked: list[tuple[str, str]]) -> list[MetricPower]:
    return [
        MetricPower(
            task=row.task, metric=row.metric, power=tuple(smallest_effect(row.n, opposite=share) for share in OPPOSITE)
        )
        for row in comparisons
        if row.cell == BASELINE.key and row.kind == "rate" and (row.task, row.metric) in asked
    ]


def _verdicts(
    comparisons: list[Comparison], asked: list[tuple[str, str]], budget: DamageBudget, level: float
) -> list[Verdict]:
    """A verdict for each cell with controls; for a method without controls, at its smallest and largest multiplier."""
    by_key = by_cell_task_metric(comparisons)
    found = []
    for row in comparisons:
        if (row.task, row.metric) not in asked or row.paired is None or row.p_holm is None:
            continue
        line = [
            other
            for other in comparisons
            if (other.task, other.metric, other.method, other.size) == (row.task, row.metric, row.method, row.size)
        ]
        ends = (min(other.multiplier for other in line), max(other.multiplier for other in line))
        if row.null is None and (row.multiplier not in ends or any(other.null for other in line)):
            continue
        claim = Claim.model_validate({name: getattr(row, name) for name in Claim.model_fields})
        found.append(verdict(claim, broken=broken_text(by_key, row.cell, row.task, budget), level=level))
    return found
