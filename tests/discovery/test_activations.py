"""Streaming statistics of activations."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as tf

from lm_eval_cna.discovery.activations import count_in_top, mean_activations
from lm_eval_cna.discovery.means import RunningSums
from lm_eval_cna.errors import CNAError, ConfigError, ContrastError
from lm_eval_cna.interventions.methods import Read
from lm_eval_cna.transformer.decoder import find_architecture
from tests.helpers.models import tiny


def rows(number: int = 7, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 97) for _ in range(draw.randrange(1, 20))] for _ in range(number)]


def activations(model: Any, prompt: list[int]) -> torch.Tensor:
    """[layers, width] of one prompt, by hand."""
    seen: list[torch.Tensor] = []
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def test_running_sums_take_sixteen_bytes_a_neuron_however_many_prompts() -> None:
    sums = RunningSums(groups=2, layers=3)
    sizes = []
    for _ in range(50):
        for layer in range(3):
            sums.add(layer, torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]), torch.randn(4, 48))
        sizes.append(sums.nbytes)
    assert set(sizes) == {16 * 3 * 48}


def test_running_sums_do_not_lose_small_values() -> None:
    """Adding 1 to 2 ** 24 is lost in float32 and must not be here."""
    sums = RunningSums(groups=1, layers=1)
    sums.add(0, torch.ones(1, 1), torch.tensor([[2.0**24]]))
    for _ in range(100):
        sums.add(0, torch.ones(1, 1), torch.tensor([[1.0]]))
    assert sums.means([1], "values").item() == 2**24 + 100


def test_means_of_two_groups_and_magnitudes() -> None:
    model, prompts = tiny("llama"), rows()
    groups = [0, 1, 1, 0, 1, 0, 0]
    found = mean_activations(find_architecture(model), prompts, groups, read=("neurons", "magnitudes"), batch_size=3)
    table = torch.stack([activations(model, prompt) for prompt in prompts]).double()
    assert found.counts == (4, 3)
    assert found.neurons is not None and found.magnitudes is not None and not found.neurons.requires_grad
    for group in (0, 1):
        expected = table[[i for i, g in enumerate(groups) if g == group]].mean(dim=0)
        torch.testing.assert_close(found.neurons[group], expected.flatten(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.magnitudes, table.abs().mean(dim=0).flatten(), atol=1e-6, rtol=0)
    assert found.writes is None and found.blocks is None


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("k", [1, 10, 144])
def test_count_in_top(batch_size: int, k: int) -> None:
    model, prompts = tiny("llama"), rows()
    expected = torch.zeros(144, dtype=torch.int32)
    for prompt in prompts:
        expected[activations(model, prompt).flatten().abs().topk(k).indices] += 1
    counts = count_in_top(find_architecture(model), prompts, k, batch_size=batch_size)
    assert torch.equal(counts.flatten(), expected)
    assert counts.sum() == k * len(prompts)


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


def test_a_text_part_in_a_multimodal_model_is_read() -> None:
    text = tiny("gemma3_text").config
    config = tf.Gemma3Config(
        text_config=text.to_dict(),
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    torch.manual_seed(0)
    model = tf.Gemma3ForConditionalGeneration(config).eval()
    found = mean_activations(find_architecture(model), rows(), [0] * 7, read=("neurons", "writes"))
    assert found.neurons is not None and found.neurons.shape == (1, 3 * 48) and found.neurons.abs().sum() > 0


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
