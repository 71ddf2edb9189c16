"""The cross-validation of a circuit as rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from lm_eval_cna.analysis.stability import Shift, Spread, Stable
from lm_eval_cna.interventions.stability import Stability
from lm_eval_cna.report.interventions import Rows


def stability_rows(found: Stable) -> Rows:
    """The summary of a cross-validation."""
    shuffled = "too few prompts" if found.shuffled is None else _spread(found.shuffled)
    rows: Rows = [
        ("Jaccard index of two folds' circuits", _spread(found.overlap)),
        ("the same, labels shuffled", shuffled),
        ("the same, circuits drawn at random", f"{found.by_chance:.4f}"),
        ("Jaccard index with the whole circuit", _spread(found.of_whole)),
        (f"neurons in all {found.folds} folds' circuits", f"{found.in_all:,} of {found.size:,}"),
        ("contrast on prompts left out, of that on the others", _spread(found.transferred, percent=True)),
    ]
    if found.left_out is None:
        return [*rows, ("prompts whose KL is not finite", str(found.not_finite))]
    left = found.left_out
    kept = "nothing to take a share of" if left.kept is None else f"{100 * left.kept:.1f} %"
    if left.kept_interval is not None:
        kept += f" ({100 * left.kept_interval.low:.1f} to {100 * left.kept_interval.high:.1f})"
    return [
        *rows,
        (f"KL on {left.prompts} positive prompts left out, nats", _shift(left.own)),
        ("the same, circuit of all prompts", _shift(left.whole)),
        ("the same, random neurons", _shift(left.random)),
        ("KL left out, of that of the circuit of all prompts", kept),
    ]


#: Columns of `fold_rows`.
FOLD_HEAD = (
    "left out",
    "prompts",
    "Jaccard, whole",
    "contrast, found on",
    "contrast, left out",
    "share",
    "KL left out",
    "KL whole",
    "KL random",
)


def fold_rows(record: Stability) -> Rows:
    """One row per fold: its prompts, its circuit's overlap with the whole circuit, and its deltas and KLs."""
    return [
        (
            f"fold {number}",
            f"{fold.positive} + {fold.negative}",
            f"{fold.of_whole:.3f}",
            f"{fold.delta_seen:.3g}",
            f"{fold.delta_left_out:.3g}",
            f"{100 * fold.delta_left_out / fold.delta_seen:.1f} %" if fold.delta_seen else "",
            *(_mean_kl(values) for values in (fold.kl, fold.kl_whole, fold.kl_random)),
        )
        for number, fold in enumerate(record.folds, start=1)
    ]


def pair_rows(record: Stability) -> tuple[tuple[str, ...], Rows]:
    """Head and rows of the Jaccard index of every two folds' circuits."""
    folds = range(1, len(record.folds) + 1)
    pairs = dict(zip(combinations(folds, 2), record.jaccard, strict=True))
    rows: Rows = [
        (f"fold {one}", *(f"{pairs[one, other]:.3f}" if one < other else "" for other in folds[1:]))
        for one in folds[:-1]
    ]
    return ("Jaccard index", *(f"fold {other}" for other in folds[1:])), rows


def _spread(spread: Spread, *, percent: bool = False) -> str:
    form, factor = (".1f", 100) if percent else (".3f", 1)
    mean, low, high = (f"{factor * value:{form}}" for value in (spread.mean, spread.low, spread.high))
    return f"{mean}{' %' if percent else ''} ({low} to {high})"


def _shift(shift: Shift) -> str:
    ends = shift.interval
    return f"{shift.mean:.3g}" + (f" ({ends.low:.3g} to {ends.high:.3g})" if ends else "")


def _mean_kl(values: Sequence[float | None]) -> str:
    finite = [value for value in values if value is not None]
    return f"{fmean(finite):.3g}" if len(finite) == len(values) else "not finite"
