"""Where the decoder layers and MLP down-projections of a model are; refuses what it does not know.

Floor 1. A family is one row of `FAMILIES`. The decoder stack is found by walking the module tree, so a PEFT
wrapper around the model or a vision tower beside the text part needs no case of its own. Nothing is guessed:
an architecture that is not in the table, or a layer that does not look like its family, is an error, because
a partial match would steer part of the model and report it as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lm_eval_cna import placement
from lm_eval_cna.errors import ArchitectureError


@dataclass(frozen=True)
class Family:
    """The attribute names of one model family.

    Attributes:
        layers: name of the list of decoder layers in the stack.
        mlp: name of the MLP in a decoder layer.
        down: name of the down-projection in the MLP.
        post_norm: name of the norm in a decoder layer that the MLP's output passes before it is added to the
            residual stream, or None where it is added as it is.
    """

    layers: str = "layers"
    mlp: str = "mlp"
    down: str = "down_proj"
    post_norm: str | None = None


# Keyed by `config.model_type` of the decoder stack.
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(),
    "gemma2": Family(post_norm="post_feedforward_layernorm"),
    "gemma3_text": Family(post_norm="post_feedforward_layernorm"),
    "olmo2": Family(post_norm="post_feedforward_layernorm"),
    "gpt2": Family(layers="h", down="c_proj"),
    "gpt_neox": Family(down="dense_4h_to_h"),
    "falcon": Family(layers="h", down="dense_4h_to_h"),
}


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        index: position in the stack, from 0.
        block: the decoder layer; its output is the residual stream after it.
        down: the down-projection as the model calls it, an adapter's wrapper included; its input
            [batch, sequence, width] holds the neurons' activations.
        write: the module whose output [batch, sequence, hidden] is added to the residual stream: the MLP, or
            the norm behind it.
        block_name, down_name, write_name: their names in `model.named_modules()`.
    """

    index: int
    block: nn.Module
    down: nn.Module
    write: nn.Module
    block_name: str
    down_name: str
    write_name: str

    @property
    def projection(self) -> nn.Module:
        """The down-projection without adapter wrappers: the module that holds the weight."""
        module = self.down
        while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
            module = inner
        return module

    @property
    def weight(self) -> torch.Tensor | None:
        """The down-projection's weight, neurons along `neuron_dim`; `placement` says where its numbers are.

        Packed where the model is quantized, and None where the quantizer keeps it under other names (GPTQ, AWQ).
        """
        weight = getattr(self.projection, "weight", None)
        return weight if isinstance(weight, torch.Tensor) else None

    @property
    def held(self) -> range:
        """The neurons that this process computes: all of them, unless the weight is cut over processes."""
        return placement.held(self.weight, self.neuron_dim, neurons_of(self), self.down_name)

    def channels(self, x: torch.Tensor) -> range:
        """The neurons that an input [..., channels] of the projection holds."""
        return placement.channels(x.shape[-1], self.held, neurons_of(self), self.down_name)

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [..., all neurons] from those [..., neurons held here]; all processes must call this."""
        return placement.gathered(x, self.weight, self.neuron_dim, neurons_of(self), self.down_name)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter (LoRA) wraps the down-projection."""
        return self.projection is not self.down

    @property
    def neuron_dim(self) -> int:
        """The dimension of the weight that runs over neurons: 1 for `nn.Linear`, 0 for GPT-2's `Conv1D`."""
        return 0 if type(self.projection).__name__ == "Conv1D" else 1


@dataclass(frozen=True)
class Architecture:
    """What discovery and steering need to know of a model.

    Attributes:
        name: class name of the model, adapters and wrappers aside ("LlamaForCausalLM").
        stack: the decoder stack; maps token ids to hidden states and computes no logits.
        layers: its decoder layers, in order.
        width: MLP width, the number of neurons of a layer.
        hidden: width of the residual stream.
    """

    name: str
    stack: nn.Module
    layers: tuple[Layer, ...]
    width: int
    hidden: int

    @property
    def num_neurons(self) -> int:
        """Neurons of the whole model."""
        return len(self.layers) * self.width


def find_architecture(model: nn.Module) -> Architecture:
    """Find the decoder layers and down-projections of `model`.

    Args:
        model: a transformers model, also under a PEFT wrapper or with a text part inside.

    Raises:
        ArchitectureError: the model is of no known family, has more than one decoder stack, or has a layer
            that does not look like its family (a mixture of experts, say). The message names what was found.
    """
    unwrap: Any = getattr(model, "get_base_model", None)  # PEFT's wrapper
    base = unwrap() if unwrap is not None else model
    name = type(base).__name__
    stacks = [
        (path, module, family)
        for path, module in model.named_modules()
        if (family := FAMILIES.get(_model_type(module))) and hasattr(module, family.layers)
    ]
    if not stacks:
        raise ArchitectureError(
            f"no known decoder stack in {name} (model type {_model_type(base) or 'unknown'}{_experts(model)})",
            allowed="model types " + ", ".join(sorted(FAMILIES)),
            do="add a row to FAMILIES in lm_eval_cna/architecture.py",
        )
    if len(stacks) > 1:
        raise ArchitectureError(
            f"{name} has more than one decoder stack: " + ", ".join(path or "(root)" for path, _, _ in stacks),
            do="pass the text model alone",
        )
    path, stack, family = stacks[0]
    layers = tuple(
        _layer(index, block, family, ".".join(filter(None, (path, family.layers, str(index)))))
        for index, block in enumerate(getattr(stack, family.layers))
    )
    if not layers:
        raise ArchitectureError(f"{name} has no decoder layers")
    widths = {neurons_of(layer) for layer in layers}
    if len(widths) > 1:
        raise ArchitectureError(
            f"the MLPs of {name} differ in width: {sorted(widths)}", allowed="one width for all layers"
        )
    config = stack.config
    hidden = config.hidden_size
    assert isinstance(hidden, int)
    return Architecture(name, stack, layers, widths.pop(), hidden)


def _model_type(module: nn.Module) -> str:
    return str(getattr(getattr(module, "config", None), "model_type", ""))


def _layer(index: int, block: nn.Module, family: Family, name: str) -> Layer:
    mlp = getattr(block, family.mlp, None)
    down = getattr(mlp, family.down, None)
    if mlp is None or not callable(down):
        found = f"{type(mlp).__name__} without {family.down}" if mlp is not None else f"no {family.mlp}"
        raise ArchitectureError(
            f"layer {name} ({type(block).__name__}) is not a dense MLP layer: found {found}{_experts(block)}",
            allowed=f"{family.mlp}.{family.down} in every layer",
        )
    write, write_name = mlp, family.mlp
    if family.post_norm is not None:
        write, write_name = getattr(block, family.post_norm), family.post_norm
    return Layer(index, block, down, write, name, f"{name}.{family.mlp}.{family.down}", f"{name}.{write_name}")


def _experts(module: nn.Module) -> str:
    """Say which mixture-of-experts module was found, if one was."""
    for name, child in module.named_modules():
        if "experts" in name.rsplit(".", 1)[-1] or "Moe" in type(child).__name__.replace("MoE", "Moe"):
            return f"; found the mixture-of-experts module {name or '(root)'} of type {type(child).__name__}"
    return ""


def neurons_of(layer: Layer) -> int:
    """The neurons of a layer, read off the projection (quantized classes keep `in_features`)."""
    projection = layer.projection
    if type(projection).__name__ == "Conv1D" and layer.weight is not None:
        return layer.weight.shape[0]
    width = getattr(projection, "in_features", None)
    if not isinstance(width, int):
        raise ArchitectureError(
            f"{layer.down_name} is a {type(projection).__name__}", allowed="a linear layer or GPT-2's Conv1D"
        )
    return width


def weight_columns(layer: Layer, indices: torch.Tensor) -> torch.Tensor | None:
    """A copy of the weight's columns for some neurons, gathered or read from where they are.

    Args:
        layer: the layer.
        indices: neuron indices [n], on any device.

    Returns:
        [n, hidden], in the weight's dtype; None where a quantizer has packed them.
    """
    weight = None if layer.weight is None else placement.whole(layer.weight, layer.projection, "weight")
    if weight is None or placement.is_packed(weight):
        return None
    columns = weight.index_select(layer.neuron_dim, indices.to(weight.device))
    return columns if layer.neuron_dim == 0 else columns.T.contiguous()
