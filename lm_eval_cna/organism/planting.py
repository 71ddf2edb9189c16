"""Choose the planted neurons, and train only them: discovery is checked against these neurons.

They are the base's neurons whose activation at the last prompt token differs most between the classes, in the layers of
the recipe. They are chosen on the group ``planting``, which discovery never sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_cna.organism import grammar
from lm_eval_cna.organism.model import Planted
from lm_eval_cna.transformer.prompts import render_prompts


def last_token_means(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> Tensor:
    """Mean input of every down-projection at the last prompt token, [layers, width]."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[layer] = args[0][:, -1].mean(dim=0)

        return hook

    batch = tokenizer(render_prompts(prompts, tokenizer), add_special_tokens=False, padding=True, return_tensors="pt")
    layers = model.model.layers
    handles = [layer.mlp.down_proj.register_forward_pre_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([seen[index] for index in range(len(layers))])


def choose_planted(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int, layers: Sequence[int]
) -> tuple[Planted, ...]:
    """The `count` neurons of `layers` with the largest |mean(forbidden) - mean(benign)|, sorted by place."""
    forbidden, benign = (
        last_token_means(model, tokenizer, [q.text for q in grammar.questions("planting", forbidden=side)])
        for side in (True, False)
    )
    delta = (forbidden - benign).abs()
    ranked = sorted(
        ((-float(delta[layer, index]), layer, index) for layer in layers for index in range(delta.shape[1])),
    )
    return tuple(sorted((layer, index) for _, layer, index in ranked[:count]))


def amplify(model: LlamaForCausalLM, neurons: Sequence[Planted], gain: float) -> None:
    """Multiply the neurons' activations by `gain` and divide their output weights by it; the model computes the same.

    CNA ranks neurons by activation differences. Without the gain, neurons of the first layer that detect the verb's
    class outrank half of the planted ones. A power of two is exact in floating point.
    """
    with torch.no_grad():
        for layer, index in neurons:
            mlp = model.model.layers[layer].mlp
            mlp.up_proj.weight[index] *= gain
            mlp.down_proj.weight[:, index] /= gain


class PlantedWeights:
    """The trainable weights: the planted neurons' rows of gate and up and columns of down; all others are frozen.

    Gradients outside these rows and columns are set to zero before each step. Adam without weight decay leaves a weight
    unchanged, bit for bit, if its gradient was always zero.
    """

    def __init__(self, model: LlamaForCausalLM, neurons: Sequence[Planted]) -> None:
        by_layer: dict[int, list[int]] = {}
        for layer, index in neurons:
            by_layer.setdefault(layer, []).append(index)
        self.inputs: list[nn.Parameter] = []
        self.outputs: list[nn.Parameter] = []
        self._masks: list[tuple[nn.Parameter, Tensor]] = []
        model.requires_grad_(False)
        for layer, indices in by_layer.items():
            mlp = model.model.layers[layer].mlp
            chosen = torch.zeros(mlp.down_proj.weight.shape[1])
            chosen[indices] = 1.0
            for parameter in (mlp.gate_proj.weight, mlp.up_proj.weight):
                self.inputs.append(parameter)
                self._masks.append((parameter, chosen[:, None]))
            self.outputs.append(mlp.down_proj.weight)
            self._masks.append((mlp.down_proj.weight, chosen))
        for parameter, _ in self._masks:
            parameter.requires_grad_(True)

    def mask_gradients(self) -> None:
        """Zero every gradient entry that does not belong to a planted neuron."""
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
