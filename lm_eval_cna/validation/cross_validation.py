"""Is the same circuit found on other prompts, and does it act on prompts that it was not found on?

The model runs over the contrast set once: `measure` keeps the sums of each fold, and every fold's circuit comes from
them. First-token KLs take four more passes over the positive prompts. `interventions.stability` defines what is
measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

from lm_eval_cna.contrast.contrast_set import ContrastSet, prompts_sha256
from lm_eval_cna.contrast.splits import NEGATIVE, POSITIVE, Split
from lm_eval_cna.discovery import ranking
from lm_eval_cna.discovery.circuit_size import size_of
from lm_eval_cna.discovery.controls import draw_neurons
from lm_eval_cna.discovery.measurement import Measurement, Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.header import stamp
from lm_eval_cna.interventions.stability import Fold, Stability
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.neurons import Neuron, positions
from lm_eval_cna.validation.first_token_kl import harmless_kl


def cross_validate(
    model: Any,
    tokenizer: Any,
    contrast: ContrastSet,
    split: Split,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    excluded_layers: Collection[int] = (),
    universal_filter: bool = True,
    check_leakage: bool = True,
    settings: Settings | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> tuple[Circuit, Stability]:
    """Find the circuit that `discover` finds, and measure how stable it is over the folds of `split` (`split_prompts`).

    Arguments are those of `discover`.

    Raises:
        ConfigError: a size or layer is out of range.
        CNAError: as in `measure` and `assess`.
    """
    measurement = measure(
        model,
        tokenizer,
        contrast,
        read=("neurons",),
        universal_filter=universal_filter,
        universal_fraction=size_of(find_architecture(model), fraction, top_k).share,
        check_leakage=check_leakage,
        split=split,
        settings=settings,
        model_id=model_id,
        revision=revision,
    )
    circuit = cna.find(measurement, fraction=fraction, top_k=top_k, excluded_layers=excluded_layers)
    return circuit, assess(model, tokenizer, measurement, circuit, settings=settings)


def assess(
    model: Any,
    tokenizer: Any,
    measurement: Measurement,
    circuit: Circuit,
    *,
    settings: Settings | None = None,
    mode: Mode = "auto",
) -> Stability:
    """Measure the stability of a circuit over the folds of its contrast set.

    The measurement was made with a split, and the circuit was found on all its prompts. The folds' circuits have its
    size and leave out the same layers and universal neurons. `mode` says how the model is steered for the KLs.

    Raises:
        ConfigError: a layer has too few neurons to draw random ones from.
        CNAError: the untouched model's logits are not finite.
    """
    settings, split = settings or Settings(), measurement.split
    assert split is not None and measurement.by_group is not None, "measure with a split"
    found = circuits_by_fold(measurement, circuit)
    folds = []
    for fold, own in enumerate(found):
        members = {label: split.members(fold, label) for label in (POSITIVE, NEGATIVE)}
        prompts = {label: [measurement.contrast.prompts[at] for at in chosen] for label, chosen in members.items()}
        drawn = draw_neurons(model, own, seed=fold, model_id=measurement.model_id, revision=measurement.revision)
        kl, kl_whole, kl_random = harmless_kl(
            model,
            tokenizer,
            [Setting(ablated, 0.0) for ablated in (own, circuit, drawn)],
            prompts[POSITIVE],
            mode=mode,
            rendering=settings.rendering,
            batch_size=settings.batch_size,
        )
        left_out = measurement.by_group.merged([g.label if g.fold == fold else None for g in split.groups])
        assert left_out.neurons is not None
        difference, layout = ranking.mean_difference(left_out.neurons), measurement.architecture.layout
        folds.append(
            Fold(
                positive=len(prompts[POSITIVE]),
                negative=len(prompts[NEGATIVE]),
                prompts_sha256=prompts_sha256(prompts[POSITIVE], prompts[NEGATIVE]),
                circuit_sha256=own.sha256,
                of_whole=_jaccard(own.neurons, circuit.neurons),
                delta_seen=fmean(abs(_delta(neuron)) for neuron in own.neurons),
                # Signed so that the direction in which the circuit was found is positive.
                delta_left_out=fmean(
                    math.copysign(1.0, _delta(neuron)) * float(difference[layout.position(neuron.place)])
                    for neuron in own.neurons
                ),
                kl=kl.values,
                kl_whole=kl_whole.values,
                kl_random=kl_random.values,
            )
        )
    counted = Counter(neuron.place for own in found for neuron in own.neurons)
    shuffled = _shuffled(measurement, circuit)
    return Stability(
        model=circuit.model,
        circuit_sha256=circuit.sha256,
        size=len(circuit.neurons),
        contrast=measurement.contrast.name,
        contrast_sha256=measurement.contrast.sha256,
        seed=split.seed,
        folds=tuple(folds),
        found_in=tuple(counted[neuron.place] for neuron in circuit.neurons),
        jaccard=_pairs([own.neurons for own in found]),
        jaccard_shuffled=None if shuffled is None else _pairs(shuffled),
        jaccard_random=_by_chance(measurement, circuit),
        **stamp(),
    )


def circuits_by_fold(measurement: Measurement, circuit: Circuit) -> list[Circuit]:
    """For each fold the circuit of all prompts but the fold's; the model is not run again.

    Size, left-out layers and universal neurons are those of `circuit`, which was found on all prompts. (Universal
    neurons depend on the model alone, not on the contrast set.)
    """
    assert measurement.split is not None
    return [_without(measurement, circuit, fold) for fold in range(measurement.split.folds)]


def _without(measurement: Measurement, circuit: Circuit, fold: int) -> Circuit:
    split, contrast = measurement.split, measurement.contrast
    assert split is not None and measurement.by_group is not None
    name = f"{contrast.name}-without-{fold}"
    positive, negative = (
        [contrast.prompts[at] for other in range(split.folds) if other != fold for at in split.members(other, label)]
        for label in (POSITIVE, NEGATIVE)
    )
    info = measurement.info.model_copy(
        update={
            "contrast": name,
            "contrast_sha256": prompts_sha256(positive, negative),
            "positive": len(positive),
            "negative": len(negative),
        }
    )
    into = [group.label if group.fold != fold else None for group in split.groups]
    part = replace(measurement, means=measurement.by_group.merged(into), info=info)
    excluded = circuit.discovery.excluded_layers
    delta = ranking.mean_difference(part.read("neurons"))
    return part.circuit("cna", delta, top_k=len(circuit.neurons), excluded_layers=excluded, name=name)


def _shuffled(measurement: Measurement, circuit: Circuit) -> list[tuple[Neuron, ...]] | None:
    """Each fold's circuit with shuffled labels: neurons that differ between two random halves of each class.

    Halves are compared within a class, so that the true contrast has no influence even if classes are uneven.
    """
    assert measurement.split is not None and measurement.by_group is not None
    found = []
    for fold in range(measurement.split.folds):
        into = [2 * g.label + g.shuffled if g.fold != fold else None for g in measurement.split.groups]
        if not set(into) >= {0, 1, 2, 3}:  # a half has no prompt
            return None
        halves = measurement.by_group.merged(into).neurons  # of the positive prompts, then of the negative ones
        assert halves is not None
        delta = (halves[0] - halves[1] + halves[2] - halves[3]) / 2
        found.append(
            ranking.rank_neurons(
                delta,
                measurement.architecture.layout,
                len(circuit.neurons),
                excluded_layers=circuit.discovery.excluded_layers,
                universal=measurement.universal,
            )
        )
    return found


def _delta(neuron: Neuron) -> float:
    assert neuron.delta is not None
    return neuron.delta


def _pairs(circuits: Sequence[Sequence[Neuron]]) -> tuple[float, ...]:
    return tuple(_jaccard(one, other) for one, other in combinations(circuits, 2))


def _jaccard(one: Sequence[Neuron], other: Sequence[Neuron]) -> float:
    first, second = ({neuron.place for neuron in neurons} for neurons in (one, other))
    return len(first & second) / len(first | second)


def _by_chance(measurement: Measurement, circuit: Circuit) -> float:
    """The Jaccard index of two circuits that share as many neurons as two random draws do on average."""
    size, layout = len(circuit.neurons), measurement.architecture.layout
    left_out = set(positions(layout, measurement.universal))
    for layer in circuit.discovery.excluded_layers:
        left_out.update(layout.of_layer(layer))
    common = size * size / (layout.num_neurons - len(left_out))
    return common / (2 * size - common)
