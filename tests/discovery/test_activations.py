"""Streaming statistics of activations."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lm_eval_cna.discovery.activations import count_in_top, mean_activations
from lm_eval_cna.discovery.means import RunningSums
from lm_eval_cna.errors import CNAError, ConfigError, ContrastError
from lm_eval_cna.interventions.methods import Read
from lm_eval_cna.transformer.decoder import find_architecture
from tests.helpers.models import tiny


def rows(number: int = 7, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 97) for _ in range(draw.randrange(1, 20))] for _ in range(number)]


def test_running_sums_do_not_lose_small_values() -> None:
    """Adding 1 to 2 ** 24 is lost in float32 and must not be here."""
    sums = RunningSums(groups=1, layers=1)
    sums.add(0, torch.ones(1, 1), torch.tensor([[2.0**24]]))
    for _ in range(100):
        sums.add(0, torch.ones(1, 1), torch.tensor([[1.0]]))
    assert sums.means([1], "values").item() == 2**24 + 100


def test_count_in_top_breaks_ties_by_layer_and_index() -> None:
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.zero_()  # every activation is 0
    counts = count_in_top(find_architecture(model), rows(), 50)
    assert counts.flatten().tolist() == [7] * 50 + [0] * 94


@pytest.mark.parametrize(
    ("lengths", "batch_size", "expected"),
    [((2, 9, 3, 8, 1), 2, [(2, 9), (2, 3), (1, 1)]), ((60, 7, 8, 6, 40, 5, 9), 16, [(2, 60), (5, 9)])],
)
def test_batches_are_sorted_by_length_and_little_padded(lengths: Any, batch_size: int, expected: Any) -> None:
    model, shapes, seen = tiny("llama"), [], []
    model.model.register_forward_pre_hook(
        lambda _, __, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    mean_activations(
        find_architecture(model),
        [[5] * length for length in lengths],
        [0] * len(lengths),
        batch_size=batch_size,
        progress=lambda stage, done, total, detail="": seen.append(done),
    )
    assert shapes == expected and seen[-1] == len(lengths) and len(seen) == len(expected)


@pytest.mark.parametrize("read", ["neurons", "magnitudes", "writes", "blocks"])
def test_nothing_is_computed_that_is_not_read(read: Read) -> None:
    model, seen = tiny("gemma2"), []

    def note(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _, __, out: seen.append((name, out.shape[1])))

    last = model.model.layers[-1]
    for name, module in (
        ("down", last.mlp.down_proj),
        ("first", model.model.layers[0].mlp),
        ("norm", model.model.norm),
    ):
        note(name, module)
    mean_activations(find_architecture(model), [[5] * 9], [0], read=(read,))
    after = {"writes": [("down", 1)], "blocks": [("down", 9)]}.get(read, [])
    assert seen == [("first", 9), *after]


def test_errors() -> None:
    model = tiny("llama")
    architecture = find_architecture(model)
    with pytest.raises(ConfigError, match="batch size; got 0"):
        mean_activations(architecture, rows(), [0] * 7, batch_size=0)
    with pytest.raises(ConfigError, match=r"what to read; got \['noise'\]"):
        mean_activations(architecture, rows(), [0] * 7, read=("noise",))  # type: ignore[arg-type]
    with pytest.raises(ContrastError, match="no prompt"):
        count_in_top(architecture, [], 1)
    model.model.layers[1].mlp.forward = lambda x: x
    with pytest.raises(CNAError, match="layer 1 was never called"):
        mean_activations(architecture, rows(), [0] * 7)
