"""Folds of a contrast set: what one pass gives is what a run for each fold would give."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.splits import NEGATIVE, POSITIVE, Split, split_prompts
from lm_eval_cna.discovery.controls import draw_neurons
from lm_eval_cna.discovery.discover import discover
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.stability import Stability
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.validation.cross_validation import cross_validate
from lm_eval_cna.validation.first_token_kl import harmless_kl
from tests.helpers.models import letters, tiny

FOLDS, SIZE = 3, 9
SETTINGS = Settings(batch_size=5)


tokenizer = pytest.fixture(letters, scope="module", name="tokenizer")


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    """Ten and eight prompts of 3 to 40 characters."""
    draw = random.Random(2)
    texts = ["".join(chr(draw.randrange(33, 120)) for _ in range(draw.randrange(3, 40))) for _ in range(18)]
    return ContrastSet("made-up", tuple(texts[:10]), tuple(texts[10:]), leakage="made up, nothing to leak into")


@pytest.fixture(scope="module")
def found(tokenizer: Any, contrast: ContrastSet) -> tuple[Circuit, Stability]:
    return cross_validate(
        tiny("llama"),
        tokenizer,
        contrast,
        split_prompts(contrast, FOLDS),
        top_k=SIZE,
        excluded_layers=(0,),
        settings=SETTINGS,
    )


@pytest.fixture(scope="module")
def alone(tokenizer: Any, contrast: ContrastSet, found: tuple[Circuit, Stability]) -> list[Circuit]:
    """Each fold's circuit, found in a run of its own on the prompts of the other folds."""
    model, split, universal = tiny("llama"), split_prompts(contrast, FOLDS), found[0].discovery.universal_filter
    circuits = []
    for fold in range(FOLDS):
        left = measure(model, tokenizer, without(contrast, split, fold), universal_filter=False, settings=SETTINGS)
        # Universal neurons are those of the model, whatever the contrast set.
        left = replace(left, info=left.info.model_copy(update={"universal_filter": universal}))
        circuits.append(cna.find(left, top_k=SIZE, excluded_layers=(0,)))
    return circuits


def without(contrast: ContrastSet, split: Split, fold: int, *, only: bool = False) -> ContrastSet:
    """The set without a fold, or the fold alone."""
    classes = []
    for label in (POSITIVE, NEGATIVE):
        members = set(split.members(fold, label))
        of_label = [at for at, group in enumerate(split.prompts) if group.label == label]
        classes.append(tuple(contrast.prompts[at] for at in of_label if (at in members) == only))
    return ContrastSet("part", *classes, leakage="made up")


def places(circuit: Circuit) -> set[tuple[int, int]]:
    return {neuron[:2] for neuron in circuit.neurons}


def jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


def test_the_whole_circuit_is_the_one_without_folds(
    tokenizer: Any, contrast: ContrastSet, found: tuple[Circuit, Stability]
) -> None:
    plain = discover(tiny("llama"), tokenizer, contrast, top_k=SIZE, excluded_layers=(0,), settings=SETTINGS)
    assert isinstance(plain, Circuit)
    circuit = found[0]
    assert [n[:2] for n in circuit.neurons] == [n[:2] for n in plain.neurons] and circuit.model == plain.model
    assert [n.delta for n in circuit.neurons] == pytest.approx([n.delta for n in plain.neurons], abs=1e-9)
    assert circuit.discovery.model_copy(update={"created": None}) == plain.discovery.model_copy(
        update={"created": None}
    )


def test_one_pass_gives_the_circuits_of_a_run_for_each_fold(
    found: tuple[Circuit, Stability], alone: list[Circuit]
) -> None:
    circuit, record = found
    assert [fold.circuit_sha256 for fold in record.folds] == [own.sha256 for own in alone]
    assert len({own.sha256 for own in alone}) > 1, "folds that all agree would show little"
    assert record.jaccard == pytest.approx([jaccard(*map(places, pair)) for pair in combinations(alone, 2)])
    whole = [jaccard(places(own), places(circuit)) for own in alone]
    assert [fold.of_whole for fold in record.folds] == pytest.approx(whole)
    assert record.found_in == tuple(sum(n[:2] in places(own) for own in alone) for n in circuit.neurons)
    assert (record.circuit_sha256, record.size, record.contrast) == (circuit.sha256, SIZE, "made-up")
    universal = circuit.discovery.universal_filter
    assert universal is not None
    eligible = 2 * 48 - sum(layer != 0 for layer, _ in universal.neurons)
    assert record.jaccard_random == pytest.approx((SIZE / eligible) / (2 - SIZE / eligible))


def test_the_contrast_on_prompts_that_were_left_out(
    tokenizer: Any, contrast: ContrastSet, found: tuple[Circuit, Stability], alone: list[Circuit]
) -> None:
    model, split = tiny("llama"), split_prompts(contrast, FOLDS)
    for number, (own, fold) in enumerate(zip(alone, found[1].folds, strict=True)):
        part = without(contrast, split, number, only=True)
        assert (fold.positive, fold.negative) == (len(part.positive), len(part.negative))
        assert fold.prompts_sha256 == part.sha256
        everything = cna.find(measure(model, tokenizer, part, universal_filter=False, settings=SETTINGS), top_k=144)
        delta = {n[:2]: n.delta for n in everything.neurons}
        moved = [delta[n[:2]] * (1 if (n.delta or 0) > 0 else -1) for n in own.neurons]  # type: ignore[operator]
        assert fold.delta_left_out == pytest.approx(sum(moved) / SIZE, abs=1e-5)
        assert fold.delta_seen == pytest.approx(sum(abs(n.delta or 0) for n in own.neurons) / SIZE, abs=1e-5)


def test_the_kl_is_that_of_the_fold_s_positive_prompts(
    tokenizer: Any, contrast: ContrastSet, found: tuple[Circuit, Stability], alone: list[Circuit]
) -> None:
    model, split, circuit = tiny("llama"), split_prompts(contrast, FOLDS), found[0]
    own, fold = alone[1], found[1].folds[1]
    settings = [Setting(ablated, 0.0) for ablated in (own, circuit, draw_neurons(model, own, seed=1))]
    part = without(contrast, split, 1, only=True)
    measured = harmless_kl(model, tokenizer, settings, part.positive, batch_size=1)
    for kept, expected in zip((fold.kl, fold.kl_whole, fold.kl_random), measured, strict=True):
        assert kept == pytest.approx(expected.values, abs=1e-6)
    assert min(value or 0 for value in fold.kl) > 0


def test_shuffled_labels_are_the_same_procedure_on_halves_of_each_class(
    tokenizer: Any, contrast: ContrastSet, found: tuple[Circuit, Stability]
) -> None:
    """By hand: within each class the difference of its two halves, averaged over the classes."""
    split, record, universal = split_prompts(contrast, FOLDS), found[1], found[0].discovery.universal_filter
    measured = measure(
        tiny("llama"), tokenizer, contrast, universal_filter=False, split=split, settings=Settings(batch_size=1)
    )
    assert measured.by_group is not None and measured.by_group.neurons is not None and universal is not None
    circuits = []
    for fold in range(FOLDS):
        delta = torch.zeros(144, dtype=torch.float64)
        for label in (POSITIVE, NEGATIVE):
            for half, sign in ((0, 1), (1, -1)):
                chosen = [
                    n for n, g in enumerate(split.groups) if g.fold != fold and (g.label, g.shuffled) == (label, half)
                ]
                counts = torch.tensor([measured.by_group.counts[n] for n in chosen], dtype=torch.float64)
                delta += sign * torch.tensordot(counts / counts.sum(), measured.by_group.neurons[chosen], 1) / 2
        delta[:48] = 0
        for layer, index in universal.neurons:
            delta[48 * layer + index] = 0
        circuits.append(set(delta.abs().topk(SIZE).indices.tolist()))
    assert record.jaccard_shuffled is not None
    assert record.jaccard_shuffled == pytest.approx([jaccard(*pair) for pair in combinations(circuits, 2)])


def test_the_contrast_set_is_run_once_however_many_folds(tokenizer: Any, contrast: ContrastSet) -> None:
    model = tiny("llama")
    calls: list[int] = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    read: Any = ("neurons", "magnitudes", "writes", "blocks")
    plain = measure(model, tokenizer, contrast, read=read, universal_filter=False, settings=SETTINGS)
    once = len(calls)
    split = split_prompts(contrast, 4)
    folded = measure(model, tokenizer, contrast, read=read, universal_filter=False, split=split, settings=SETTINGS)
    assert len(calls) == 2 * once
    for what in read:
        torch.testing.assert_close(getattr(folded.means, what), getattr(plain.means, what), rtol=0, atol=1e-9)
    assert folded.means.counts == plain.means.counts == (10, 8)


def test_few_prompts_support_no_shuffled_labels(tokenizer: Any, contrast: ContrastSet) -> None:
    few = ContrastSet("few", contrast.positive[:2], contrast.negative[:2], leakage="made up")
    _, record = cross_validate(tiny("llama"), tokenizer, few, split_prompts(few, 2), top_k=5, universal_filter=False)
    assert record.jaccard_shuffled is None and len(record.jaccard) == 1


def test_folds_of_a_mixture_of_experts(tokenizer: Any, contrast: ContrastSet) -> None:
    """A neuron of an expert is told apart from those of the same number in other experts."""
    split = split_prompts(contrast, FOLDS)
    circuit, record = cross_validate(
        tiny("mixtral"), tokenizer, contrast, split, top_k=SIZE, universal_filter=False, settings=SETTINGS
    )
    plain = discover(tiny("mixtral"), tokenizer, contrast, top_k=SIZE, universal_filter=False, settings=SETTINGS)
    assert isinstance(plain, Circuit) and circuit.sha256 == plain.sha256
    assert all(neuron.expert is not None for neuron in circuit.neurons)
    assert record.jaccard_random == pytest.approx((SIZE / (4 * 144)) / (2 - SIZE / (4 * 144)))
