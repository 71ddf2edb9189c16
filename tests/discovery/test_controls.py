"""Random neurons and vectors, matched to an intervention."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lm_eval_cna.discovery.controls import _nearest, random_neurons, random_neurons_of, random_vectors
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.methods import THIRDS, third_of_layers
from lm_eval_cna.transformer.neurons import SHARED, Neuron, NeuronLayout
from tests.discovery.test_ranking import MIXED, pairs, ranked

OF_EXPERTS = (
    Neuron(0, 5, 1.0, 2),
    Neuron(0, 4, 1.0, SHARED),
    Neuron(1, 8, 1.0),
    Neuron(2, 0, 1.0, 0),
    Neuron(0, 0, 1.0, 0),
)


LIKE = tuple(Neuron(layer, index, 1.0) for layer, index in [(1, 5), (0, 2), (1, 0), (1, 19), (0, 3)])


def test_random_is_a_function_of_the_seed() -> None:
    assert len({random_neurons(LIKE, NeuronLayout.dense(2, 20), seed=7) for _ in range(3)}) == 1
    assert len({random_neurons(LIKE, NeuronLayout.dense(2, 500), seed=seed) for seed in range(20)}) == 20
    # Frozen: a circuit file's seed must give the same control on another machine and another day.
    assert pairs(random_neurons(LIKE, NeuronLayout.dense(2, 20), seed=0)) == [(1, 11), (0, 0), (1, 14), (1, 10), (0, 1)]


@pytest.mark.parametrize("whole_layers", [False, True])
def test_draws_are_uniform(whole_layers: bool) -> None:
    """Chi-squared over 4,000 controls that may hold 19 neurons: of one layer of 20, or of two layers of 10."""
    counts = Counter[tuple[int, int]]()
    for seed in range(4000):
        if whole_layers:
            like = [Neuron(0, 0, 2.0), Neuron(5, 5, 1.0)]
            counts.update(pairs(random_neurons_of(like, NeuronLayout.dense(6, 10), (0, 1), seed=seed)))
        else:
            counts.update(pairs(random_neurons(LIKE[:1], NeuronLayout.dense(2, 20), seed=seed)))
    expected = counts.total() / 19
    assert len(counts) == 19 and not {(0, 0), (1, 5)} <= counts.keys()
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 42.3  # 0.1 % of 18 degrees of freedom


def test_activation_matching_draws_near_neighbours() -> None:
    magnitudes = torch.arange(400, dtype=torch.float64).repeat(2)
    like = tuple(Neuron(1, index, 1.0) for index in (390, 200, 10))
    seen = set()
    for seed in range(200):
        drawn = random_neurons(like, NeuronLayout.dense(2, 400), seed=seed, magnitudes=magnitudes)
        for ours, theirs in zip(drawn, like, strict=True):
            assert 0 < abs(ours.index - theirs.index) <= 22
        seen.add(drawn[1].index)
    assert len(seen) == 20


@pytest.mark.parametrize("matched", [False, True])
def test_a_prefix_is_drawn_alike(matched: bool) -> None:
    """What is drawn i-th depends on nothing after it, apart from the whole circuit being spared."""
    magnitudes = torch.rand(100, generator=torch.Generator().manual_seed(0)) if matched else None
    spared = [(n.layer, n.index) for n in LIKE]
    whole = random_neurons(LIKE, NeuronLayout.dense(2, 50), seed=3, magnitudes=magnitudes)
    for k in range(1, 6):
        assert (
            random_neurons(LIKE[:k], NeuronLayout.dense(2, 50), seed=3, universal=spared, magnitudes=magnitudes)
            == whole[:k]
        )


def test_random_vectors_keep_the_norm_and_nothing_else() -> None:
    like = {0: torch.randn(64), 3: torch.zeros(64), 4: torch.randn(64) * 100}
    drawn = random_vectors(like, seed=5)
    assert list(drawn) == [0, 3, 4]
    for layer in (0, 4):
        assert drawn[layer].norm().item() == pytest.approx(like[layer].norm().item(), rel=1e-5)
        assert abs(torch.cosine_similarity(drawn[layer], like[layer], dim=0).item()) < 0.6
    assert not drawn[3].any()
    assert torch.equal(random_vectors(like, seed=5)[4], drawn[4])
    assert not torch.equal(random_vectors(like, seed=6)[4], drawn[4])


@pytest.mark.parametrize(
    ("layers", "sizes"), [(3, (1, 1, 1)), (4, (1, 2, 1)), (5, (2, 1, 2)), (16, (5, 6, 5)), (28, (9, 10, 9))]
)
def test_thirds_hold_every_layer_once_and_are_symmetric(layers: int, sizes: tuple[int, int, int]) -> None:
    thirds = [third_of_layers(layers, third) for third in THIRDS]
    assert tuple(map(len, thirds)) == sizes and sizes[0] == sizes[2]
    assert [layer for third in thirds for layer in third] == list(range(layers))


def test_a_shallow_model_has_no_middle() -> None:
    with pytest.raises(ConfigError, match="a model of 2 layers has no middle third"):
        third_of_layers(2, "middle")
    with pytest.raises(ConfigError, match=r"third of the layers; got 'layer'; allowed: bottom, middle, top"):
        third_of_layers(6, "layer")


def test_a_control_of_some_layers() -> None:
    like = ranked(torch.randn(6, 50, generator=torch.Generator().manual_seed(0)), 40)
    universal = [(2, index) for index in range(0, 50, 2)]
    drawn = random_neurons_of(like, NeuronLayout.dense(6, 50), (2, 3), seed=4, universal=universal)
    assert len(set(pairs(drawn))) == 40 and {n.layer for n in drawn} == {2, 3}
    assert not set(pairs(drawn)) & (set(pairs(like)) | set(universal))
    assert all(n.delta is None for n in drawn)
    assert drawn == random_neurons_of(like, NeuronLayout.dense(6, 50), [3, 2], seed=4, universal=universal)
    assert drawn != random_neurons_of(like, NeuronLayout.dense(6, 50), (2, 3), seed=5, universal=universal)
    with pytest.raises(ConfigError, match=r"2 layers to draw from have \d+ neurons .* got '40 to draw'"):
        random_neurons_of(
            like, NeuronLayout.dense(6, 20), (2, 3), seed=4, universal=[(2, index) for index in range(20)]
        )


def test_a_control_is_of_the_layer_and_kind_and_not_of_the_expert() -> None:
    seen = set()
    for seed in range(200):
        drawn = random_neurons(OF_EXPERTS, MIXED, seed=seed, universal=[(0, 1, 0)])
        kinds = [(n.layer, "routed" if isinstance(n.expert, int) else n.expert) for n in drawn]
        assert kinds == [(0, "routed"), (0, SHARED), (1, None), (2, "routed"), (0, "routed")]
        places = {n.place for n in drawn}
        assert all(n.delta is None for n in drawn)
        assert len(places) == 5 and not places & {(0, 1, 0), *(n.place for n in OF_EXPERTS)}
        seen.add(drawn[0].expert)
    assert seen == {0, 1, 2}
    with pytest.raises(ConfigError, match="the shared expert of layer 0 has 0 neurons that are neither"):
        random_neurons(OF_EXPERTS, MIXED, seed=0, universal=[(0, SHARED, index) for index in range(4)])
    with pytest.raises(ConfigError, match=r"the experts of layer 2 has 0 neurons .*got '1 to draw'"):
        random_neurons(OF_EXPERTS, MIXED, seed=0, universal=[(2, e, i) for e in range(3) for i in range(6)])


def test_matching_by_activation_stays_in_the_kind() -> None:
    magnitudes = torch.zeros(50, dtype=torch.float64)
    magnitudes[[MIXED.position(place) for place in ((0, 2, 5), (0, 1, 1), (0, SHARED, 1))]] = 5.0
    drawn = {random_neurons(OF_EXPERTS[:1], MIXED, seed=seed, magnitudes=magnitudes)[0].place for seed in range(100)}
    assert (0, 1, 1) in drawn and all(len(place) == 3 and place[1] != SHARED for place in drawn)


def test_a_control_of_a_third_takes_neurons_of_any_kind() -> None:
    kinds = {
        neuron.expert
        for seed in range(50)
        for neuron in random_neurons_of(OF_EXPERTS, MIXED, (0, 1), seed=seed)
        if neuron.layer < 2
    }
    assert kinds == {0, 1, 2, SHARED, None}


@pytest.mark.parametrize("size", [1, 19, 20, 21, 300])
def test_the_nearest_are_those_of_a_whole_sort(size: int) -> None:
    for seed in range(20):
        values = torch.randint(0, 7, (size,), generator=torch.Generator().manual_seed(seed)).double()
        expected = (values - 3.4).abs().sort(stable=True).indices[:20]
        assert torch.equal(_nearest(values, torch.tensor(3.4, dtype=torch.float64)), expected)
