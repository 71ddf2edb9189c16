"""Statistics in plain sentences.

A verdict says what steering did to one metric of one task, whether chance could do the same (Holm-adjusted p), and
whether random neurons do. With fewer than 19 controls it makes no claim about random neurons. It says if the text is
broken, since a model that babbles does not refuse either.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.methods import METHODS, NULLS, OF_VECTORS
from lm_eval_cna.statistics.dose_response import Trend
from lm_eval_cna.statistics.null_distribution import ALPHA, Null
from lm_eval_cna.statistics.paired import Kind, Paired
from lm_eval_cna.statistics.power import smallest_effect
from lm_eval_cna.statistics.rates import Interval

Finding = Literal["specific", "unspecific", "effect", "none"]
_METRICS = {
    "refusal_rate": "refusal",
    "strongreject_score": "the StrongREJECT score",
    "rating10_score": "the judge's rating",
    "acc": "accuracy",
    "exact_match": "exact match",
}


class DamageBudget(AnalysisRecord):
    """The accepted damage."""

    quality: float = Field(default=0.95, ge=0, le=1)
    """Least mean quality of the steered text."""
    degenerate: float = Field(default=0.05, ge=0, le=1)
    """Most by which the share of degenerate texts may rise."""
    capability: float = Field(default=0.01, ge=0, le=1)
    """Most by which a capability metric may fall."""


class Subject(AnalysisRecord):
    """A metric of a task in a cell."""

    cell: str
    method: str
    multiplier: float
    size: int | None
    """The cell."""
    task: str
    metric: str
    """What was measured."""


class Claim(Subject):
    """The statistics that a verdict is about: the fields of an `evidence.Comparison`."""

    kind: Kind
    paired: Paired
    p_holm: float
    null: Null | None


class Verdict(Subject):
    """A claim and its verdict in words."""

    finding: Finding
    """"specific": an effect beyond those of random neurons; "unspecific": an effect that random neurons have too;
    "effect": an effect with too few controls for a test, or none; "none": no effect that can be told from chance."""
    broken: bool
    """Whether the steered text is broken, so that the effect is no evidence of other behaviour."""
    text: str
    """The verdict in sentences."""


def verdict(claim: Claim, *, broken: str | None = None, level: float = 0.95) -> Verdict:
    """Say what a comparison shows; `broken` is what `is_broken` says of the cell's text on this task."""
    is_effect, null = claim.p_holm <= ALPHA, claim.null
    finding: Finding = "none"
    if is_effect and (null is None or not null.testable):
        finding = "effect"
    elif is_effect and null is not None:
        finding = "specific" if null.beyond else "unspecific"
    sentences = [f"{_effect_clause(claim, level)}{_null_clause(claim, is_effect=is_effect)}."]
    if claim.paired.left_out:
        sentences.append(f"{count(claim.paired.left_out, 'prompt')} without a value in both cells left out.")
    if broken is not None:
        sentences.append(f"{broken}, so this is no evidence of another behaviour." if is_effect else f"{broken}.")
    if not is_effect and claim.kind == "rate" and (least := smallest_effect(claim.paired.n).effect) is not None:
        sentences.append(
            f"With {count(claim.paired.n, 'prompt')}, an effect of {100 * least:.1f} points or more would have been "
            "seen four times in five, if no prompt goes the other way."
        )
    return Verdict(
        **claim.model_dump(include=set(Subject.model_fields)),
        finding=finding,
        broken=broken is not None,
        text=" ".join(sentences),
    )


def is_broken(
    quality: float | None,
    quality_before: float | None,
    degenerate: float | None,
    degenerate_before: float | None,
    budget: DamageBudget,
) -> str | None:
    """Say whether the steered text is broken: quality below the budget, or more degenerate texts than it allows.

    Returns:
        The start of a sentence, or None. If the baseline's own quality is below the budget, the text is broken only
        if steering lowers it further.
    """
    signs = []
    if quality is not None and quality < budget.quality and (quality_before is None or quality < quality_before):
        signs.append(f"mean quality {quality:.2f}" + _before(quality_before, "{:.2f}"))
    if degenerate is not None and degenerate - (degenerate_before or 0.0) > budget.degenerate:
        before = None if degenerate_before is None else 100 * degenerate_before
        signs.append(f"{100 * degenerate:.1f} % of the answers degenerate" + _before(before, "{:.1f} %"))
    if not signs:
        return None
    return f"The text is broken there ({'; '.join(signs)})"


def trend_sentence(trend: Trend, *, task: str, metric: str, method: str, kind: Kind) -> str:
    """Say how a metric changes with the multiplier."""
    name = f"{metric_name(metric)} on {task}"
    if trend.monotone:
        first, last = (f"{_value(trend.means[at], kind)} at m = {trend.multipliers[at]:g}" for at in (0, -1))
        where = f"from {first} to {last}"
    else:
        places = (trend.means.index(extreme(trend.means)) for extreme in (min, max))
        least, most = (f"{_value(trend.means[at], kind)} at m = {trend.multipliers[at]:g}" for at in places)
        where = f"least {least}, most {most}"
    tested = f"{where} (Page's trend test {p_text(trend.p)}, {count(trend.n, 'prompt')})."
    if trend.p > ALPHA or trend.rising is None:
        return f"{_capital(name)} has no trend over the multipliers of {method} that can be told from chance: {tested}"
    if trend.monotone:
        return f"{_capital(name)} {'rises' if trend.rising else 'falls'} with the multiplier of {method}: {tested}"
    way = "rise" if trend.rising else "fall"
    return f"{_capital(name)} tends to {way} with the multiplier of {method}, but turns: {tested}"


def metric_name(metric: str) -> str:
    """A metric in words, with its filter."""
    name, bracket, rest = metric.partition(" (")
    return _METRICS.get(name, name) + bracket + rest


def action(method: str, multiplier: float) -> str:
    """What a method does at a multiplier, as a noun."""
    if multiplier == 0:
        return "Suppression" if method in OF_VECTORS else "Ablation"
    if multiplier < 0:
        return "Inversion"
    return "Damping" if multiplier < 1 else "Amplification"


def _effect_clause(claim: Claim, level: float) -> str:
    size = "" if claim.size is None else f"{count(claim.size, 'neuron')}, "
    head = f"{action(claim.method, claim.multiplier)} ({claim.method}, {size}m = {claim.multiplier:g})"
    paired, what = claim.paired, f"{metric_name(claim.metric)} on {claim.task}"
    test = "exact McNemar" if claim.kind == "rate" else "sign-flip permutation"
    tested = f"{test} {p_text(claim.p_holm)} after Holm"
    if claim.p_holm > ALPHA:
        shown = change_text(paired.effect, claim.kind, unit=True)
        interval = "" if paired.interval is None else f"{interval_text(paired.interval, claim.kind, level)}; "
        return f"{head} has no effect on {what} that can be told from chance: {shown} ({interval}{tested})"
    # "lowers by 12.5 points" counts downwards, and so does its interval.
    rises = paired.effect > 0
    shown = change_text(abs(paired.effect), claim.kind, unit=True).removeprefix("+")
    interval = ""
    if paired.interval is not None:
        counted = paired.interval if rises else paired.interval.turned()
        interval = f"{interval_text(counted, claim.kind, level).replace('+', '')}; "
    return f"{head} {'raises' if rises else 'lowers'} {what} by {shown} ({interval}{tested})"


def _null_clause(claim: Claim, *, is_effect: bool) -> str:
    null = claim.null
    if null is None:
        return "; no controls were run here, so whether other neurons do the same is open" if is_effect else ""
    ends = " to ".join(change_text(end, claim.kind, unit=False) for end in (null.low, null.high))
    band = f"{ends} points" if claim.kind == "rate" else ends
    others = METHODS[NULLS[claim.method]].label
    controls = others if claim.method in OF_VECTORS else "random controls"
    outside = null.outside(claim.paired.effect)
    if not null.testable:
        many = controls if null.seeds > 1 else controls.removesuffix("s")
        return f", {'outside' if outside else 'inside'} the range of {null.seeds} {many} ({band}), too few for a test"
    if null.beyond:
        joint = ", " if is_effect else "; yet "
        return f"{joint}outside the null band of {null.seeds} {controls} ({band}; {p_text(null.p)})"
    where = "outside the range, but no further out than some" if outside else "inside the null band"
    return f"; no effect distinguishable from {others}: {where} of {null.seeds} {controls} ({band}; {p_text(null.p)})"


def interval_text(interval: Interval, kind: Kind, level: float) -> str:
    """An interval of a difference in words."""
    low, high = (change_text(end, kind, unit=False) for end in (interval.low, interval.high))
    return f"{100 * level:g} % interval {low} to {high}"


def change_text(effect: float, kind: Kind, *, unit: bool) -> str:
    """A signed difference: in points for a rate, in the metric's own unit for a mean; a zero has no sign."""
    shown = f"{100 * effect:+.1f}" if kind == "rate" else f"{effect:+.3f}"
    if float(shown) == 0:
        shown = shown[1:]
    return shown + (" points" if unit and kind == "rate" else "")


def _value(value: float, kind: Kind) -> str:
    return f"{100 * value:.1f} %" if kind == "rate" else f"{value:.3f}"


def p_value(p: float) -> str:
    """A p value with two digits: "0.03" or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{float(f'{p:.2g}'):g}"


def p_text(p: float) -> str:
    """A p value in words: "p = 0.03" or "p < 0.001"."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def _before(value: float | None, form: str) -> str:
    return "" if value is None else f", baseline {form.format(value)}"


def count(number: int, noun: str) -> str:
    """A number of things: "1 prompt", "2,000 prompts"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
