"""Intervention files as rows of text: what one is, where it sits, what two have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from lm_eval_cna.analysis.profile import LayerShares, layer_profile, overlap
from lm_eval_cna.analysis.stability import Shift, Spread, Stable
from lm_eval_cna.intervention import Circuit, Vectors
from lm_eval_cna.neurons import SHARED
from lm_eval_cna.stability import Stability

Rows = list[tuple[str, ...]]


def facts(intervention: Circuit | Vectors) -> Rows:
    """What the file's header says, unknown entries left out."""
    made, found = intervention.model, intervention.discovery
    size = (
        f"{len(intervention.neurons)} neurons in {len(intervention.layers)} layers{_experts(intervention)}"
        if isinstance(intervention, Circuit)
        else f"{len(intervention.layers)} vectors, added to {intervention.place} outputs"
    )
    universal = found.universal_filter
    entries: list[tuple[str, object]] = [
        ("method", intervention.method),
        ("size", size),
        ("share of all neurons", None if found.fraction is None else f"{100 * found.fraction:g} %"),
        ("model", made.id),
        ("revision", made.revision),
        ("architecture", " of ".join(filter(None, (made.architecture, made.shape))) or None),
        ("dtype", made.dtype),
        ("contrast set", found.contrast),
        ("prompts", f"{found.positive} positive, {found.negative} negative" if found.positive else None),
        ("excluded layers", ", ".join(map(str, found.excluded_layers)) or None),
        ("universal neurons left out", None if universal is None else len(universal.neurons)),
        ("leakage", found.leakage),
        ("layer", found.layer),
        ("control seed", found.seed),
        ("matched by", found.match),
        ("created", found.created),
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items()) or None),
        ("hash of neurons or vectors", intervention.sha256),
        ("hash of weight columns", made.columns_sha256),
    ]
    return [(name, str(value)) for name, value in entries if value is not None]


def _experts(circuit: Circuit) -> str:
    """How the neurons of a circuit are spread over experts, in words."""
    owners = [neuron.expert for neuron in circuit.neurons]
    shared, dense = owners.count(SHARED), owners.count(None)
    if dense == len(owners):
        return ""
    used = len({(neuron.layer, neuron.expert) for neuron in circuit.neurons if isinstance(neuron.expert, int)})
    parts = [f"{len(owners) - shared - dense} in {used} routed experts"]
    parts += [f"{shared} in shared experts"] if shared else []
    parts += [f"{dense} in dense layers"] if dense else []
    return ": " + ", ".join(parts)


def profile_rows(circuits: Sequence[Circuit]) -> Rows:
    """Where the neurons lie: share in the last layers, for the whole circuit and its top 200."""
    rows: Rows = []
    for circuit in circuits:
        if circuit.model.num_layers is None:
            continue  # a file of foreign origin does not say how deep its model is
        profile = layer_profile(circuit)
        rows += [
            (circuit.name, name, f"{100 * _share(profile.whole, key):.1f} %", f"{100 * _share(profile.top, key):.1f} %")
            for name, key in (
                ("last three layers", "last_three"),
                (f"final quarter ({profile.quarter_layers})", "final_quarter"),
                (f"final tenth ({profile.tenth_layers})", "final_tenth"),
            )
        ]
        rows.append((circuit.name, "neurons by layer", _counts(profile.whole), _counts(profile.top)))
    return rows


def overlap_rows(first: Circuit, second: Circuit) -> Rows:
    """What two circuits of one shape have in common."""
    shared = overlap(first, second)
    rows: Rows = [
        (f"neurons of {first.name}", str(shared.size_a)),
        (f"neurons of {second.name}", str(shared.size_b)),
        ("common", str(shared.common)),
        ("overlap, of the smaller", f"{100 * shared.of_smaller:.1f} %"),
        ("Jaccard index", f"{shared.jaccard:.3f}"),
    ]
    if shared.by_chance is not None:
        rows.append(("overlap of random circuits", f"{100 * shared.by_chance:.2f} %"))
    return rows


def stability_rows(found: Stable) -> Rows:
    """The figures of a circuit's stability over prompts."""
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
    """One row a fold: its prompts, its circuit's overlap with the whole one, and what that does on them."""
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


def _share(shares: LayerShares, key: str) -> float:
    return float(getattr(shares, key))


def _counts(shares: LayerShares) -> str:
    return " ".join(map(str, shares.counts))
