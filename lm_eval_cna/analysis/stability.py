"""Cross-validation of a circuit: is it found again on other prompts, and does it act on prompts it has not seen?

Folds share most of their prompts, so overlaps and deltas are not independent, and their spread is shown as a range. The
KLs have one value per prompt, and their means have bootstrap intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from lm_eval_cna.analysis.verdicts import count, p_text
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.stability import Fold, Stability
from lm_eval_cna.statistics.paired import compare
from lm_eval_cna.statistics.rates import LEVEL, RESAMPLES, SEED, Interval, mean_interval

#: In nats: of a smaller mean KL no share is computed.
NOTHING = 1e-4


class Spread(AnalysisRecord):
    """Spread of the values of all folds or of all pairs of folds."""

    mean: float
    low: float
    high: float
    """Mean, least and greatest value."""


class Shift(AnalysisRecord):
    """A mean KL over prompts, in nats."""

    mean: float
    """Mean over the prompts."""
    interval: Interval | None
    """Bootstrap interval of the mean; None with fewer than two prompts."""


class LeftOut(AnalysisRecord):
    """Effect of ablation on the first token of positive prompts that the circuit was found without."""

    prompts: int
    """Number of prompts."""
    own: Shift
    """KL with the circuits found without the prompt."""
    whole: Shift
    """KL with the circuit found on all prompts."""
    random: Shift
    """KL with random neurons."""
    kept: float | None
    """Mean of `own` divided by mean of `whole`; None if the latter is almost 0."""
    kept_interval: Interval | None
    """Bootstrap interval of `kept`, prompts resampled in pairs."""
    p: float
    """Two-sided p of the difference between `own` and `random`, by a sign-flip permutation test."""


class Stable(AnalysisRecord):
    """Summary of a stability record."""

    folds: int
    size: int
    """Number of folds, and of neurons of the circuit."""
    overlap: Spread
    """Jaccard index of the circuits of two folds."""
    shuffled: Spread | None
    """The same with shuffled labels; None if there were too few prompts."""
    by_chance: float
    """Expected Jaccard index of circuits drawn at random."""
    of_whole: Spread
    """Jaccard index of each fold's circuit with the whole circuit."""
    in_all: int
    """Neurons of the whole circuit that are in the circuit of every fold."""
    transferred: Spread
    """Delta on the prompts left out divided by delta on the others, by fold."""
    left_out: LeftOut | None
    """The KLs; None if one is not finite."""
    not_finite: int
    """Number of prompts whose KL is not finite."""
    texts: tuple[str, ...]
    """The summary in sentences."""


def judge(record: Stability, *, level: float = LEVEL) -> Stable:
    """Summarise a stability record."""
    folds = record.folds
    gone = sum(None in values for fold in folds for values in zip(fold.kl, fold.kl_whole, fold.kl_random, strict=True))
    figures = Stable(
        folds=len(folds),
        size=record.size,
        overlap=_spread(record.jaccard),
        shuffled=None if record.jaccard_shuffled is None else _spread(record.jaccard_shuffled),
        by_chance=record.jaccard_random,
        of_whole=_spread([fold.of_whole for fold in folds]),
        in_all=sum(times == len(folds) for times in record.found_in),
        transferred=_spread([_ratio(fold) for fold in folds]),
        left_out=None if gone else _left_out(folds, level),
        not_finite=gone,
        texts=(),
    )
    return figures.model_copy(update={"texts": _texts(record, figures, level)})


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=fmean(values), low=min(values), high=max(values))


def _ratio(fold: Fold) -> float:
    return fold.delta_left_out / fold.delta_seen if fold.delta_seen else 0.0


def _left_out(folds: Sequence[Fold], level: float) -> LeftOut:
    own, whole, random = (
        [value for fold in folds for value in getattr(fold, name) if value is not None]
        for name in ("kl", "kl_whole", "kl_random")
    )
    difference = compare(dict(enumerate(own)), dict(enumerate(random)), "mean", level=level)
    assert difference is not None
    seen = fmean(whole)
    return LeftOut(
        prompts=len(own),
        own=_shift(own, level),
        whole=_shift(whole, level),
        random=_shift(random, level),
        kept=fmean(own) / seen if seen > NOTHING else None,
        kept_interval=_ratio_interval(own, whole, level) if seen > NOTHING else None,
        p=difference.p,
    )


def _shift(values: Sequence[float], level: float) -> Shift:
    return Shift(mean=fmean(values), interval=mean_interval(values, level=level))


def _ratio_interval(own: Sequence[float], whole: Sequence[float], level: float) -> Interval | None:
    """Percentile bootstrap of a ratio of means, prompts resampled in pairs; None if a denominator is 0."""
    pairs = np.array([own, whole])
    generator = np.random.default_rng(SEED)
    means = np.array([pairs[:, generator.integers(0, len(own), len(own))].mean(axis=1) for _ in range(RESAMPLES)])
    if len(own) < 2 or (means[:, 1] <= 0).any():
        return None
    low, high = np.quantile(means[:, 0] / means[:, 1], ((1 - level) / 2, (1 + level) / 2))
    return Interval(low=float(low), high=float(high))


def _texts(record: Stability, found: Stable, level: float) -> tuple[str, ...]:
    overlap, shuffled = found.overlap, found.shuffled
    chance = f"circuits drawn at random {found.by_chance:.3g}"
    if shuffled is not None:
        chance += f", circuits found with shuffled labels {shuffled.mean:.3f}"
    same = (
        f"Found without one of {found.folds} folds of {record.contrast}, circuits of {count(found.size, 'neuron')} "
        f"have a mean Jaccard index of {overlap.mean:.3f} with each other, at least {overlap.low:.3f} ({chance}). "
        f"{found.in_all:,} of the neurons of the whole circuit are in all {found.folds}."
    )
    if shuffled is not None and overlap.mean <= shuffled.high:
        same += " They are no more alike than circuits that set nothing apart, so which neurons they hold is chance."
    moved = found.transferred
    held = (
        f"On the prompts that were left out, the contrast of a circuit's neurons is {100 * moved.mean:.0f} % of what "
        f"it is on those that it was found on ({100 * moved.low:.0f} to {100 * moved.high:.0f} % over the folds)."
    )
    return (same, held, _left_out_text(found, level))


def _left_out_text(found: Stable, level: float) -> str:
    left = found.left_out
    if left is None:
        return (
            f"The KL of the first token is not finite on {count(found.not_finite, 'prompt')} that was left out, so it "
            "is not summarised."
        )
    text = (
        f"Ablation moves the first token of {count(left.prompts, 'positive prompt')} that the circuit was found "
        f"without by a KL of {_nats(left.own, level)}"
    )
    if found.of_whole.low == 1:
        text += ", and it is the circuit that was found on all prompts, neuron for neuron"
    elif left.kept is not None:
        ends = left.kept_interval
        shown = f" ({100 * level:g} % interval {100 * ends.low:.0f} to {100 * ends.high:.0f} %)" if ends else ""
        text += f", {100 * left.kept:.0f} %{shown} of what the circuit found on all prompts does there"
    text += f"; random neurons of its layers by {left.random.mean:.3g}"
    if left.own.mean <= left.random.mean:
        return f"{text}, which is no less."
    return f"{text} (sign-flip permutation {p_text(left.p)})."


def _nats(shift: Shift, level: float) -> str:
    ends = shift.interval
    return f"{shift.mean:.3g} nats" + (f" ({100 * level:g} % {ends.low:.3g} to {ends.high:.3g})" if ends else "")
