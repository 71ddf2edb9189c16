"""Layer profiles and overlap, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from lm_eval_cna.errors import CNAError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.header import ExpertsInfo, ModelInfo
from lm_eval_cna.interventions.profile import LayerShares, final_layers, layer_profile, overlap
from lm_eval_cna.report.interventions import facts, overlap_rows
from lm_eval_cna.transformer.neurons import SHARED, Neuron


def make(*pairs: tuple[int, int], layers: int | None = 16, width: int | None = 100, name: str = "c") -> Circuit:
    neurons = tuple(Neuron(layer, index, 1.0) for layer, index in pairs)
    return Circuit(method="cna", name=name, model=ModelInfo(num_layers=layers, mlp_width=width), neurons=neurons)


def test_profile_of_a_small_circuit() -> None:
    profile = layer_profile(make((0, 1), (12, 1), (13, 1), (13, 2), (15, 9)))
    counts = (1, *[0] * 11, 1, 2, 0, 1)
    assert profile.whole == LayerShares(5, counts, last_three=3 / 5, final_quarter=4 / 5, final_tenth=1 / 5)
    assert profile.top == profile.whole, "there are fewer than 200"
    tiny = layer_profile(make((0, 0), (1, 0), (1, 1), layers=2)).whole
    assert tiny == LayerShares(3, (1, 2), last_three=1.0, final_quarter=2 / 3, final_tenth=2 / 3)
    assert (profile.num_layers, profile.quarter_layers, profile.tenth_layers) == (16, 4, 2)


def test_the_top_is_the_first_200() -> None:
    last, quarter, first = ([(layer, index) for index in range(100)] for layer in (15, 12, 0))
    profile = layer_profile(make(*last, *quarter, *first))
    assert profile.top == LayerShares(200, (*[0] * 12, 100, 0, 0, 100), 1 / 2, 1.0, 1 / 2)
    assert profile.whole == LayerShares(300, (100, *[0] * 11, 100, 0, 0, 100), 1 / 3, 2 / 3, 1 / 3)
    assert layer_profile(make(*last, *first), top=100).top.final_tenth == 1.0


@pytest.mark.parametrize(
    ("layers", "quarter", "tenth"),
    # 18 / 4 = 4.5 goes up; 25 / 10 = 2.5 goes up, 24 / 10 = 2.4 down.
    [(1, 1, 1), (16, 4, 2), (18, 5, 2), (24, 6, 2), (25, 6, 3)],
)
def test_rounding_of_parts(layers: int, quarter: int, tenth: int) -> None:
    assert (final_layers(layers, 4), final_layers(layers, 10)) == (quarter, tenth)
    profile = layer_profile(make((0, 0), layers=layers))
    assert (profile.quarter_layers, profile.tenth_layers) == (quarter, tenth)


def test_the_number_of_layers_has_to_be_known() -> None:
    foreign = make((2, 5), (7, 1), layers=None, width=None)
    with pytest.raises(CNAError, match="does not say how many layers"):
        layer_profile(foreign)
    assert layer_profile(foreign, num_layers=8).whole.counts == (0, 0, 1, 0, 0, 0, 0, 1)
    with pytest.raises(CNAError, match="more than 7"):
        layer_profile(foreign, num_layers=7)
    with pytest.raises(CNAError, match="16, as circuit c says"):
        layer_profile(make((0, 0)), num_layers=12)
    assert layer_profile(make((0, 0)), num_layers=16).num_layers == 16


def test_overlap_by_hand() -> None:
    a = make((0, 1), (0, 2), (3, 1), (5, 5))
    b = make((3, 1), (0, 1), (9, 9), (9, 8), (1, 0))
    found = overlap(a, b)
    assert (found.common, found.size_a, found.size_b) == (2, 4, 5)
    assert (found.of_smaller, found.of_a, found.of_b, found.jaccard) == (2 / 4, 2 / 4, 2 / 5, 2 / 7)
    assert found.by_chance == 5 / 1600
    assert overlap(b, a).of_a == 2 / 5 and overlap(b, a).jaccard == found.jaccard


def test_overlap_of_the_same_the_smaller_and_the_foreign() -> None:
    a = make((0, 1), (0, 2), (3, 1), (5, 5))
    same, within = overlap(a, a), overlap(a, a.prefix(1))
    assert (same.of_smaller, same.jaccard) == (1.0, 1.0)
    assert (within.of_smaller, within.of_a, within.of_b, within.jaccard) == (1.0, 1 / 4, 1.0, 1 / 4)
    nothing = overlap(a, make((1, 1)))
    assert (nothing.common, nothing.of_smaller, nothing.jaccard) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (make((0, 1), layers=12, name="d"), "(16 and 12|12 and 16) layers"),
        (make((0, 1), width=99, name="d"), "(100 and 99|99 and 100) neurons a layer"),
        (make((16, 1), layers=None, width=None, name="d"), "neuron 1 of layer 16 in d"),
        (make((0, 100), layers=None, width=None, name="d"), "neuron 100 of layer 0 in d"),
    ],
)
def test_circuits_of_different_shapes_are_refused(other: Circuit, words: str) -> None:
    for pair in ((make((0, 1)), other), (other, make((0, 1)))):
        with pytest.raises(CNAError, match=f"different shapes; got.*{words}"):
            overlap(*pair)


def test_shapes_that_are_not_named() -> None:
    known, foreign = make((0, 1), (2, 3)), make((0, 1), layers=None, width=None)
    assert overlap(known, foreign).by_chance == 2 / 1600
    found = overlap(foreign, foreign)
    assert found.of_smaller == 1.0 and found.by_chance is None


def test_profile_overlap_and_facts_of_experts() -> None:
    experts = ExpertsInfo(count=4, width=10, shared_width=6, layers=(0, 2, 3))
    model = ModelInfo(num_layers=4, mlp_width=30, experts=experts)
    neurons = (Neuron(2, 7, None, 3), Neuron(2, 7, None, 1), Neuron(0, 1, None, SHARED), Neuron(1, 29))
    one = Circuit(method="random", name="one", model=model, neurons=neurons)
    other = Circuit(method="random", name="other", model=model, neurons=(Neuron(2, 7, None, 1), Neuron(3, 1, None, 0)))
    assert layer_profile(one).whole.counts == (1, 1, 2, 0)
    found = overlap(one, other)
    assert found.common == 1 and found.of_smaller == 0.5, "the same index in two experts is two neurons"
    assert found.by_chance == 4 / (3 * (4 * 10 + 6) + 30)
    assert ("overlap of random circuits", "2.38 %") in overlap_rows(one, other)
    said = dict(facts(one))  # type: ignore[arg-type]
    assert said["size"] == "4 neurons in 3 layers: 2 in 2 routed experts, 1 in shared experts, 1 in dense layers"
    assert said["architecture"] == "3 layers of 4 experts of 10 neurons and a shared one of 6, 1 of 30 neurons"
    dense = Circuit(method="random", name="dense", model=ModelInfo(num_layers=4, mlp_width=30), neurons=(Neuron(0, 1),))
    with pytest.raises(CNAError, match="different shapes"):
        overlap(one, dense)
