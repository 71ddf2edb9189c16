"""Statistics to neurons and vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lm_eval_cna.discovery.ranking import rank_neurons, universal_neurons
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.transformer.neurons import SHARED, Neuron, NeuronBlock, NeuronLayout


def ranked(delta: torch.Tensor, k: int, **options: Any) -> tuple[Neuron, ...]:
    """Of values [layers, width]."""
    return rank_neurons(delta.flatten(), NeuronLayout.dense(*delta.shape), k, **options)


def pairs(neurons: tuple[Neuron, ...]) -> list[tuple[int, int]]:
    return [(n.layer, n.index) for n in neurons]


def test_rank_by_absolute_value_keeping_the_sign() -> None:
    delta = torch.tensor([[0.1, -3.0, 2.0], [2.5, 0.0, -0.2]], dtype=torch.float64)
    assert ranked(delta, 3) == (Neuron(0, 1, -3.0), Neuron(1, 0, 2.5), Neuron(0, 2, 2.0))


def test_many_ties_stay_in_order() -> None:
    """Large enough that an unstable sort would show."""
    assert pairs(ranked(torch.ones(3, 4000), 9000)) == [(i // 4000, i % 4000) for i in range(9000)]


def test_left_out_before_the_top_is_taken() -> None:
    delta = torch.tensor([[9.0, 8.0, 7.0], [6.0, 5.0, 4.0], [3.0, 2.0, 1.0]])
    assert pairs(ranked(delta, 3, excluded_layers=(0, 0), universal=[(1, 1)])) == [(1, 0), (1, 2), (2, 0)]


def test_rank_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="circuit size; got 4; allowed: 1 to 3"):
        ranked(torch.ones(2, 3), 4, excluded_layers=[1])
    with pytest.raises(ConfigError, match="excluded layer; got 2; allowed: 0 to 1"):
        ranked(torch.ones(2, 3), 1, excluded_layers=[2])


@pytest.mark.parametrize(("prompts", "needed"), [(10, 8), (45, 36), (48, 39), (1, 1)])
def test_universal_on_at_least_eighty_percent(prompts: int, needed: int) -> None:
    counts = torch.tensor([[needed - 1, needed], [prompts, 0]])
    assert universal_neurons(counts.flatten(), NeuronLayout.dense(2, 2), prompts) == ((0, 1), (1, 0))


MIXED = NeuronLayout(
    (
        *(NeuronBlock(0, expert, 6) for expert in range(3)),
        NeuronBlock(0, SHARED, 5),
        NeuronBlock(1, None, 9),
        *(NeuronBlock(2, e, 6) for e in range(3)),
    )
)


def test_ranking_counts_every_expert_once() -> None:
    values = torch.arange(MIXED.num_neurons, dtype=torch.float64)
    assert [n.place for n in rank_neurons(values, MIXED, 2)] == [(2, 2, 5), (2, 2, 4)]
    left_out = rank_neurons(values, MIXED, 3, excluded_layers=[2], universal=[(1, 8), (0, SHARED, 4), (9, 9, 9)])
    assert [n.place for n in left_out] == [(1, 7), (1, 6), (1, 5)]
    assert [n.place for n in rank_neurons(torch.ones(50), MIXED, 50)] == [MIXED.place(i) for i in range(50)]
    assert universal_neurons((values == 20).int() * 5, MIXED, 5) == ((0, SHARED, 2),)
    with pytest.raises(ConfigError, match="allowed: 1 to 50"):
        rank_neurons(values, MIXED, 51)
