"""Rows of a table: a published figure, ours, and whether the two agree.

"inside" means that the published figure, or part of a published range, lies in our confidence interval.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from statistics import fmean
from typing import Any, Literal, NamedTuple

from lm_eval_cna.files.jsonl import read_jsonl
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.resources import published_dir
from lm_eval_cna.statistics.paired import compare
from lm_eval_cna.statistics.rates import Interval, mean_interval, wilson

Verdict = Literal["inside", "outside", "nothing published", "not measured", "follows from the rates"]
PERCENT = 100.0


class Published(NamedTuple):
    """A figure, or a range of figures, that somebody published, in the unit of its row."""

    low: float
    high: float
    shown: str


class PaperRow(AnalysisRecord):
    """One quantity of one model."""

    model: str
    """As asked for."""
    quantity: str
    """What it is, with its unit."""
    setting: str
    """Methods and multipliers, with their direction."""
    published: str | None
    """The published figure or range as text; None where there is none."""
    measured: float | None
    """Our figure; None where nothing was measured."""
    interval: Interval | None
    """Our confidence interval, in the unit of the row."""
    interval_is: str
    """Method of the interval, such as Wilson."""
    n: int | None
    """Number of prompts."""
    verdict: Verdict
    """Whether the two agree."""
    differs: tuple[str, ...] = ()
    """Differences from the authors' setup that the table does not already state for all its rows."""


class MeasuredFigure(NamedTuple):
    """A figure of ours with its interval, in the unit of its row."""

    value: float
    interval: Interval | None
    kind: str
    n: int


def figure(value: float) -> Published:
    """A published number."""
    return Published(value, value, f"{value:g}")


def row(
    model: str,
    quantity: str,
    setting: str,
    published: Published | None,
    measured: MeasuredFigure | None,
    differs: tuple[str, ...] = (),
) -> PaperRow:
    """Make a row, and compare our figure with the published one."""
    verdict: Verdict
    if measured is None:
        verdict = "not measured"
    elif published is None:
        verdict = "nothing published"
    else:
        ours = measured.interval or Interval(low=measured.value, high=measured.value)
        verdict = "inside" if published.low <= ours.high and ours.low <= published.high else "outside"
    return PaperRow(
        model=model,
        quantity=quantity,
        setting=setting,
        published=None if published is None else published.shown,
        measured=None if measured is None else measured.value,
        interval=None if measured is None else measured.interval,
        interval_is="" if measured is None else measured.kind,
        n=None if measured is None else measured.n,
        verdict=verdict,
        differs=differs,
    )


def rate(values: Collection[float]) -> MeasuredFigure | None:
    """A rate in percent with Wilson's interval."""
    if not values:
        return None
    found = wilson(round(sum(values)), len(values))
    return MeasuredFigure(PERCENT * fmean(values), _times(found, PERCENT), "Wilson", len(values))


def mean(values: Collection[float]) -> MeasuredFigure | None:
    """A mean with its bootstrap interval."""
    if not values:
        return None
    return MeasuredFigure(fmean(values), mean_interval(list(values)), "bootstrap over prompts", len(values))


def change(
    cell: Mapping[Any, float], baseline: Mapping[Any, float], kind: Literal["rate", "mean"]
) -> MeasuredFigure | None:
    """Cell minus baseline in percentage points, paired by prompt: Tango's interval for rates, else the bootstrap."""
    found = compare(cell, baseline, kind)
    if found is None:
        return None
    name = "Tango, paired by prompt" if kind == "rate" else "bootstrap over prompts, paired"
    interval = None if found.interval is None else _times(found.interval, PERCENT)
    return MeasuredFigure(PERCENT * found.effect, interval, name, found.n)


def over_folds(whole: float, folds: Collection[float]) -> MeasuredFigure:
    """A share of a circuit, in percent, and its range over circuits that were found without a fifth of the prompts.

    The neurons of a circuit are not a random sample, so the confidence interval of a rate does not apply.
    """
    every = [whole, *folds]
    return MeasuredFigure(
        PERCENT * whole,
        Interval(low=PERCENT * min(every), high=PERCENT * max(every)),
        f"range over {len(folds)} circuits, each without a fifth of the prompts",
        len(folds),
    )


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(low=factor * interval.low, high=factor * interval.high)


def claims() -> dict[str, Any]:
    """Values of results/published/claims.jsonl by name."""
    return {entry["name"]: entry["value"] for entry in _lines("claims")}


def published(file: str, model: str, field: str) -> Published | None:
    """One figure of a published table; None where there is none."""
    value = next((entry.get(field) for entry in _lines(file) if entry["model"] == model), None)
    return None if value is None else figure(value)


@cache
def _lines(file: str) -> list[dict[str, Any]]:
    return [document for _, document in read_jsonl(published_dir() / f"{file}.jsonl")]
