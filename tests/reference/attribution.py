"""CNA and CAA as the paper's formulas say, slowly and plainly: the oracle for the batched version.

One prompt at a time, no padding, one forward pass of the whole model a prompt, activations as Python lists, ranking
with `sorted`. Shares nothing with lm_eval_cna: module paths are spelled out here again, from the modelling code.
"""

from __future__ import annotations

from typing import Any

import torch

# family: (path of the list of layers, down-projection, module whose output the MLP adds to the residual stream)
PATHS = {
    "llama": ("model.layers", "mlp.down_proj", "mlp"),
    "mistral": ("model.layers", "mlp.down_proj", "mlp"),
    "qwen2": ("model.layers", "mlp.down_proj", "mlp"),
    "qwen3": ("model.layers", "mlp.down_proj", "mlp"),
    "phi3": ("model.layers", "mlp.down_proj", "mlp"),
    "gemma2": ("model.layers", "mlp.down_proj", "post_feedforward_layernorm"),
    "gemma3_text": ("model.layers", "mlp.down_proj", "post_feedforward_layernorm"),
    "olmo2": ("model.layers", "mlp.down_proj", "post_feedforward_layernorm"),
    "gpt2": ("transformer.h", "mlp.c_proj", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", "mlp"),
    "falcon": ("transformer.h", "mlp.dense_4h_to_h", "mlp"),
}


def record(model: Any, family: str, ids: list[int]) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Activations, MLP writes and residual stream of the last token, each [layers][size], of one prompt."""
    path, down, write = PATHS[family]
    layers = model.get_submodule(path)
    activations: list[list[float]] = []
    writes: list[list[float]] = []
    residual: list[list[float]] = []
    handles = []
    for layer in layers:
        handles.append(
            layer.get_submodule(down).register_forward_pre_hook(
                lambda _, args: activations.append(args[0][0, -1].tolist())
            )
        )
        handles.append(
            layer.get_submodule(write).register_forward_hook(lambda _, __, out: writes.append(out[0, -1].tolist()))
        )
        handles.append(
            layer.register_forward_hook(
                lambda _, __, out: residual.append((out[0] if isinstance(out, tuple) else out)[0, -1].tolist())
            )
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return activations, writes, residual


def mean(table: list[list[list[float]]]) -> list[list[float]]:
    """Mean over prompts of [prompts][layers][size]."""
    n = len(table)
    return [[sum(values) / n for values in zip(*layer, strict=True)] for layer in zip(*table, strict=True)]


def minus(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[x - y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def universal(
    model: Any, family: str, prompts: list[list[int]], fraction: float, share: float = 0.8
) -> set[tuple[int, int]]:
    """Neurons in the top `fraction` of the whole model by |activation| on at least `share` of the prompts."""
    seen: dict[tuple[int, int], int] = {}
    for ids in prompts:
        activations, _, _ = record(model, family, ids)
        flat = [(-abs(value), layer, index) for layer, row in enumerate(activations) for index, value in enumerate(row)]
        k = max(1, round(fraction * len(flat)))
        for _, layer, index in sorted(flat)[:k]:
            seen[layer, index] = seen.get((layer, index), 0) + 1
    return {neuron for neuron, count in seen.items() if count / len(prompts) >= share}


def circuit(
    model: Any,
    family: str,
    positive: list[list[int]],
    negative: list[list[int]],
    fraction: float,
    left_out: set[tuple[int, int]],
    excluded_layers: tuple[int, ...] = (),
) -> list[tuple[int, int, float]]:
    """(layer, index, delta) of the top `fraction`, largest |delta| first, ties by (layer, index)."""
    delta = minus(
        mean([record(model, family, ids)[0] for ids in positive]),
        mean([record(model, family, ids)[0] for ids in negative]),
    )
    flat = [(layer, index, value) for layer, row in enumerate(delta) for index, value in enumerate(row)]
    k = max(1, round(fraction * len(flat)))
    flat = [n for n in flat if n[:2] not in left_out and n[0] not in excluded_layers]
    return sorted(flat, key=lambda n: (-abs(n[2]), n[0], n[1]))[:k]


def most_active(
    model: Any,
    family: str,
    prompts: list[list[int]],
    fraction: float,
    left_out: set[tuple[int, int]],
    excluded_layers: tuple[int, ...] = (),
) -> list[tuple[int, int]]:
    """(layer, index) of the top `fraction` by mean |activation| over the prompts, ties by (layer, index)."""
    sizes = mean(
        [[[abs(value) for value in layer] for layer in record(model, family, prompt)[0]] for prompt in prompts]
    )
    flat = [(-value, layer, index) for layer, row in enumerate(sizes) for index, value in enumerate(row)]
    k = max(1, round(fraction * len(flat)))
    flat = [n for n in flat if n[1:] not in left_out and n[1] not in excluded_layers]
    return [(layer, index) for _, layer, index in sorted(flat)[:k]]


def differences(
    model: Any, family: str, positive: list[list[int]], negative: list[list[int]]
) -> tuple[list[list[float]], list[list[float]]]:
    """CAA: per layer, the class difference of MLP writes and of the residual stream."""
    yes = [record(model, family, ids) for ids in positive]
    no = [record(model, family, ids) for ids in negative]
    return (
        minus(mean([r[1] for r in yes]), mean([r[1] for r in no])),
        minus(mean([r[2] for r in yes]), mean([r[2] for r in no])),
    )
