"""The method x multiplier table of a run, as plain rows; what to show and in which order is decided here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from lm_eval_cna.sweep.summary import Measured, Summary

#: Metrics worth a column, most telling first; a task shows those that it has, and its others stay in summary.json.
HEADLINE = (
    "refusal_rate",
    "strongreject_score",
    "rating10_score",
    "n_unscored",
    "quality",
    "well_formed",
    "degenerate_rate",
    "outcome_evaded",
    "acc",
    "exact_match",
    "changed_rate",
    "harmless_kl",
    "harmless_kl_p95",
)
NAMES = {
    "baseline": "baseline",
    "cna": "CNA",
    "caa": "CAA",
    "caa-residual": "CAA, one layer",
    "random": "random neurons",
    "random-vectors": "random vectors",
}


@dataclass(frozen=True)
class Column:
    """One metric of one task."""

    task: str
    metric: str


@dataclass(frozen=True)
class Spread:
    """The values of a metric over the seeds of a control, or a single value.

    Attributes:
        mean: their mean.
        low, high: their range; equal to the mean for a single value.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.n == 1 else f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Row:
    """One method at one multiplier, all seeds of a control together.

    Attributes:
        method, multiplier, size: what was done to the model.
        cells: a spread per column, None where the task was not asked.
    """

    method: str
    multiplier: float
    size: int | None
    cells: tuple[Spread | None, ...]

    @property
    def label(self) -> str:
        """The method's name, with the circuit's size where it is a prefix."""
        name = NAMES.get(self.method, self.method)
        return name if self.size is None else f"{name}, {self.size}"


def columns(summary: Summary) -> list[Column]:
    """The headline metrics of every task, in the order in which the tasks were asked."""
    found: dict[str, set[str]] = {}
    for measured in summary.measured:
        found.setdefault(measured.task, set()).add(measured.metric)
    return [Column(task, metric) for task, metrics in found.items() for metric in HEADLINE if metric in metrics]


def rows(summary: Summary, shown: list[Column]) -> list[Row]:
    """One row for every (method, size, multiplier), in the order of the sweep."""
    keys = dict.fromkeys((m.method, m.size, m.multiplier) for m in summary.measured)
    order = list(dict.fromkeys((method, size) for method, size, _ in keys))
    ordered = sorted(keys, key=lambda key: (order.index(key[:2]), key[2]))
    by_key: dict[tuple[object, ...], list[Measured]] = {}
    for measured in summary.measured:
        by_key.setdefault(
            (measured.method, measured.size, measured.multiplier, measured.task, measured.metric), []
        ).append(measured)
    return [
        Row(
            method,
            multiplier,
            size,
            tuple(
                spread(m.value for m in by_key.get((method, size, multiplier, column.task, column.metric), ()))
                for column in shown
            ),
        )
        for method, size, multiplier in ordered
    ]


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and range of some values; None where there are none."""
    found = list(values)
    return Spread(fmean(found), min(found), max(found), len(found)) if found else None
