"""What one writes without the project: one prompt at a time, hooks set for each, and Python lists.

Kept as plain as it is described, since rows measure against it: activations are copied to host lists, neurons are
ranked in Python, and generation steers with a hook that clones what it scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lm_eval_cna.transformer.prompts import encode_prompts, render_prompts

Neuron = tuple[int, int]


def discover(model: Any, tokenizer: Any, positive: Sequence[str], negative: Sequence[str], k: int) -> list[Neuron]:
    """The k neurons (layer, index) of largest difference of mean activations at the last prompt token."""
    classes = [
        [_last_activations(model, _encode(tokenizer, prompt)) for prompt in part] for part in (positive, negative)
    ]
    ranked = []
    for layer in range(len(model.model.layers)):
        for index in range(model.config.intermediate_size):
            means = [sum(values[layer][index] for values in part) / len(part) for part in classes]
            ranked.append((-abs(means[0] - means[1]), layer, index))
    ranked.sort()
    return [(layer, index) for _, layer, index in ranked[:k]]


def _last_activations(model: Any, ids: torch.Tensor) -> list[list[float]]:
    kept: dict[int, list[float]] = {}

    def keep(layer: int) -> Any:
        return lambda module, inputs: kept.__setitem__(layer, inputs[0][0, -1].detach().cpu().tolist())

    handles = [block.mlp.down_proj.register_forward_pre_hook(keep(i)) for i, block in enumerate(model.model.layers)]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return [kept[layer] for layer in range(len(kept))]


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], neurons: Sequence[Neuron], multiplier: float, tokens: int
) -> list[str]:
    """Greedy answers of at most `tokens` tokens with the neurons' activations multiplied."""
    texts = []
    for prompt in prompts:
        ids = _encode(tokenizer, prompt)
        handles = []
        for layer in {layer for layer, _ in neurons}:
            chosen = [index for at, index in neurons if at == layer]
            handles.append(
                model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(_scale(chosen, multiplier))
            )
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        for handle in handles:
            handle.remove()
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def _scale(chosen: list[int], multiplier: float) -> Any:
    def scale(module: Any, inputs: Any) -> Any:
        x = inputs[0].clone()
        x[..., chosen] *= multiplier
        return (x, *inputs[1:])

    return scale


def _encode(tokenizer: Any, prompt: str) -> torch.Tensor:
    """The same token ids that the project uses, so that both sides compute the same."""
    return torch.tensor(encode_prompts(render_prompts([prompt], tokenizer), tokenizer))
