"""Names of neurons, and where they stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_cna.transformer.neurons import (
    SHARED,
    Expert,
    Neuron,
    NeuronBlock,
    NeuronLayout,
    by_projection,
    in_order,
    neuron_at,
)

MIXED = NeuronLayout(
    (
        NeuronBlock(0, 0, 3),
        NeuronBlock(0, 1, 3),
        NeuronBlock(0, SHARED, 2),
        NeuronBlock(1, None, 4),
        NeuronBlock(2, 0, 3),
        NeuronBlock(2, 1, 3),
    )
)


def test_every_position_is_one_neuron() -> None:
    places = [MIXED.place(position) for position in range(MIXED.num_neurons)]
    assert len(set(places)) == MIXED.num_neurons == 18 and MIXED.num_layers == 3
    assert [MIXED.position(place) for place in places] == list(range(18))
    assert places[:9] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, SHARED, 0), (0, SHARED, 1), (1, 0),
    ]  # fmt: skip
    assert in_order(reversed(places)) == places
    assert [list(MIXED.of_layer(layer)) for layer in range(3)] == [
        list(range(8)), list(range(8, 12)), list(range(12, 18)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "place",
    [(0, 0), (0, 2, 0), (0, 0, 3), (0, SHARED, 2), (1, 4), (1, 0, 0), (2, SHARED, 0), (3, 0), (1, -1)],
)
def test_what_the_model_has_not(place: tuple[int, ...]) -> None:
    assert not MIXED.has(place)  # type: ignore[arg-type]


def test_peers_are_of_the_same_layer_and_kind() -> None:
    assert MIXED.peers(Neuron(0, 1, None, 1)) == MIXED.peers(Neuron(0, 2, None, 0)) == range(6)
    assert MIXED.peers(Neuron(0, 0, None, SHARED)) == range(6, 8)
    assert MIXED.peers(Neuron(1, 3)) == range(8, 12)
    assert MIXED.peers(Neuron(2, 0, None, 0)) == range(12, 18)


def test_a_dense_model_counts_layer_by_layer() -> None:
    layout = NeuronLayout.dense(3, 5)
    assert layout.num_neurons == 15 and layout.place(7) == (1, 2) and layout.position((2, 4)) == 14
    assert layout.peers(Neuron(1, 0)) == layout.of_layer(1) == range(5, 10)


experts: st.SearchStrategy[Expert | None] = st.none() | st.integers(0, 20) | st.just(SHARED)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99), experts), max_size=30))
def test_names_come_back(entries: list[tuple[int, int, Expert | None]]) -> None:
    neurons = [Neuron(layer, index, None, expert) for layer, index, expert in entries]
    assert [neuron_at(neuron.place) for neuron in neurons] == neurons
    grouped = by_projection(neurons)
    assert sum(map(len, grouped.values())) == len(neurons)
    assert all(indices == sorted(indices) for indices in grouped.values())
