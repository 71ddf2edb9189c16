"""How few neurons are enough: the effect over the circuit's size, in one sweep of prefixes of one circuit.

A share of the largest circuit's effect is reached at the smallest size from which every larger size also reaches it, so
one lucky size does not count. Sizes that were not run are not interpolated. Estimates are compared; with few prompts
their intervals overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_cna.analysis.evidence import CLAIMED, Comparison, Evidence
from lm_eval_cna.analysis.outcomes import unfiltered
from lm_eval_cna.analysis.verdicts import change_text, count, interval_text, metric_name
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.statistics.null_distribution import ALPHA
from lm_eval_cna.statistics.paired import Kind
from lm_eval_cna.statistics.rates import Interval

METHOD = "cna"
HALF, MOST = 0.5, 0.9


class SizeEffect(AnalysisRecord):
    """The effect of a prefix of the circuit."""

    size: int
    """Number of its neurons."""
    effect: float
    interval: Interval | None
    """Change from the baseline, as a share (1 is 100 points)."""
    beyond: bool | None
    """Whether it is beyond the effects of as many random neurons; None without a test."""


class SizeCurve(AnalysisRecord):
    """The effect over the circuit's size at one multiplier."""

    task: str
    metric: str
    kind: Kind
    multiplier: float
    """Where it was measured."""
    sizes: tuple[SizeEffect, ...]
    """The sizes, ascending; the last is the largest circuit."""
    half: int | None
    most: int | None
    """Smallest size from which at least 50 % and 90 % of the largest circuit's effect is reached; None if that effect
    cannot be told from chance."""
    least_beyond: int | None
    """Smallest size from which the effect is beyond the random controls; None if there is none or no test."""
    text: str
    """The result in words."""


def size_curves(evidence: Evidence) -> tuple[SizeCurve, ...]:
    """The size curves of a run, one per claimed metric and multiplier; none with fewer than two sizes.

    If there are controls, only their multipliers have a curve.
    """
    rows = [
        row
        for row in evidence.comparisons
        if row.method == METHOD and row.size is not None and row.paired and unfiltered(row.metric) in CLAIMED
    ]
    controlled = {row.multiplier for row in rows if row.null is not None}
    rows = [row for row in rows if row.multiplier in controlled or not controlled]
    lines: dict[tuple[str, str, float], list[Comparison]] = {}
    for row in rows:
        lines.setdefault((row.task, row.metric, row.multiplier), []).append(row)
    return tuple(
        _curve(sorted(line, key=lambda row: row.size or 0), evidence.level) for line in lines.values() if len(line) > 1
    )


def _curve(line: Sequence[Comparison], level: float) -> SizeCurve:
    sizes = [_size(row) for row in line]
    whole, last = line[-1], sizes[-1]
    half = most = None
    if whole.p_holm is not None and whole.p_holm <= ALPHA and last.effect:
        half, most = (
            _from_on(sizes, [one.effect / last.effect >= share - 1e-9 for one in sizes]) for share in (HALF, MOST)
        )
    least_beyond = _from_on(sizes, [one.beyond is True for one in sizes])
    tested = all(one.beyond is not None for one in sizes)
    text = _text(whole, sizes, half, most, level)
    if tested and half is not None:
        text += (
            " It is not beyond random neurons there."
            if least_beyond is None
            else f" It is beyond as many random neurons from {count(least_beyond, 'neuron')} on."
        )
    return SizeCurve(
        **whole.model_dump(include={"task", "metric", "kind", "multiplier"}),
        sizes=tuple(sizes),
        half=half,
        most=most,
        least_beyond=least_beyond,
        text=text,
    )


def _size(row: Comparison) -> SizeEffect:
    assert row.size is not None and row.paired is not None
    beyond = row.null.beyond if row.null is not None and row.null.testable else None
    return SizeEffect(size=row.size, effect=row.paired.effect, interval=row.paired.interval, beyond=beyond)


def _from_on(sizes: Sequence[SizeEffect], holds: Sequence[bool]) -> int | None:
    """The smallest size from which something holds for all larger ones."""
    found = None
    for one, held in zip(reversed(sizes), reversed(holds), strict=True):
        if not held:
            break
        found = one.size
    return found


def _text(whole: Comparison, sizes: Sequence[SizeEffect], half: int | None, most: int | None, level: float) -> str:
    what, last = f"{metric_name(whole.metric)} on {whole.task}", sizes[-1]
    at = f"at m = {whole.multiplier:g}"
    if half is None or most is None:
        return (
            f"The largest circuit, {count(last.size, 'neuron')}, has no effect on {what} {at} that can be told from "
            "chance, so there is nothing to divide by size."
        )
    by_size = {one.size: one for one in sizes}
    way = "raises" if last.effect > 0 else "lowers"
    start = (
        f"The largest circuit, {count(last.size, 'neuron')}, {way} {what} {at} by {_amount(last.effect, whole.kind)}; "
    )
    interval = by_size[half].interval
    ends = "" if interval is None else f", {interval_text(interval, whole.kind, level)}"
    if half == last.size:
        return f"{start}no smaller size that was run keeps half of that."
    first = ", the smallest size that was run" if half == sizes[0].size else ""
    reached = f"half of that is reached with {count(half, 'neuron')}{first} "
    shown = change_text(by_size[half].effect, whole.kind, unit=True)
    rest = "which also reach nine tenths" if most == half else f"nine tenths with {most:,}"
    return f"{start}{reached}({shown}{ends}), {rest}."


def _amount(effect: float, kind: Kind) -> str:
    return change_text(abs(effect), kind, unit=True).removeprefix("+")
