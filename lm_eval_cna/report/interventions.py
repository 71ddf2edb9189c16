"""Intervention files as rows of text: facts, layers, overlap of two."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.profile import LayerShares, layer_profile, overlap
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.neurons import SHARED

Rows = list[tuple[str, ...]]


def facts(intervention: Circuit | Vectors) -> Rows:
    """The known entries of a file's header."""
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
    """How many neurons are in routed experts, shared experts and dense layers, in words."""
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
    """Shares of the neurons in the last layers, for the whole circuit and its top 200."""
    rows: Rows = []
    for circuit in circuits:
        if circuit.model.num_layers is None:
            continue  # a file made elsewhere may not give the depth of its model
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
    """The overlap of two circuits of models of one shape."""
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


def _share(shares: LayerShares, key: str) -> float:
    return float(getattr(shares, key))


def _counts(shares: LayerShares) -> str:
    return " ".join(map(str, shares.counts))
