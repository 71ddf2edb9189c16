"""Find the decoder layers and MLP down-projections of a model.

The decoder stack is found by walking the module tree, so PEFT wrappers and vision towers need no special case. An
unknown model type or a layer that differs from its family is an error, since a partial match would steer only a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lm_eval_cna.errors import ArchitectureError
from lm_eval_cna.transformer.experts import check_experts
from lm_eval_cna.transformer.families import FAMILIES, Family
from lm_eval_cna.transformer.neurons import SHARED, Expert, NeuronBlock, NeuronLayout
from lm_eval_cna.transformer.projection import Projection, unwrapped
from lm_eval_cna.transformer.weights import is_cut


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    index: int
    """Number of the layer, from 0."""
    block: nn.Module
    """The decoder layer; its output is the residual stream behind it."""
    mlp: nn.Module
    """Its MLP, whose input is [batch, sequence, hidden]."""
    write: nn.Module
    """The module whose output [batch, sequence, hidden] is added to the residual stream: the MLP, or the norm that
    follows it."""
    projections: tuple[Projection, ...]
    """Its down-projections: one for a dense MLP; for a mixture of experts one for each routed expert, in order, then
    the shared expert's."""
    name: str
    write_name: str
    """Names of `block` and `write` in `model.named_modules()`."""

    @property
    def has_experts(self) -> bool:
        """Whether the MLP is a mixture of experts."""
        return self.projections[0].is_routed


@dataclass(frozen=True)
class Architecture:
    """The parts of a model that discovery and steering use."""

    name: str
    """Class name of the model without adapters and wrappers ("LlamaForCausalLM")."""
    stack: nn.Module
    """The decoder stack, which maps token ids to hidden states and computes no logits."""
    layers: tuple[Layer, ...]
    """Its decoder layers, in order."""
    hidden: int
    """Width of the residual stream."""

    @cached_property
    def layout(self) -> NeuronLayout:
        """The order of all neurons of the model."""
        return NeuronLayout(
            tuple(NeuronBlock(p.layer, p.expert, p.width) for layer in self.layers for p in layer.projections)
        )

    @cached_property
    def projections(self) -> dict[tuple[int, Expert | None], Projection]:
        """All down-projections by (layer, expert)."""
        return {(p.layer, p.expert): p for layer in self.layers for p in layer.projections}

    @property
    def num_neurons(self) -> int:
        """Neurons of the whole model."""
        return self.layout.num_neurons

    @property
    def is_cut(self) -> bool:
        """Whether weights are sharded over processes, which then must all run the same batches."""
        return any(is_cut(parameter) for parameter in self.stack.parameters())


def find_architecture(model: nn.Module) -> Architecture:
    """Find the decoder layers and down-projections of `model`.

    Args:
        model: a transformers model; it may have a PEFT wrapper, or contain a text model.

    Raises:
        ArchitectureError: the model is of no known family, has more than one decoder stack, or has a layer that differs
            from its family (experts in another layout, for example). The message says what was found.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
        >>> architecture = find_architecture(LlamaForCausalLM(config))
        >>> architecture.name, len(architecture.layers), architecture.num_neurons
        ('LlamaForCausalLM', 2, 48)
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
            do="add a row to FAMILIES in lm_eval_cna/transformer/families.py",
        )
    if len(stacks) > 1:
        raise ArchitectureError(
            f"{name} has more than one decoder stack: " + ", ".join(path or "(root)" for path, _, _ in stacks),
            do="pass the text model alone",
        )
    path, stack, family = stacks[0]
    hidden = stack.config.hidden_size
    assert isinstance(hidden, int)
    prefix = f"{path}.{family.layers}" if path else family.layers
    layers = tuple(
        _layer(index, block, family, f"{prefix}.{index}", hidden)
        for index, block in enumerate(getattr(stack, family.layers))
    )
    if not layers:
        raise ArchitectureError(f"{name} has no decoder layers")
    architecture = Architecture(name, stack, layers, hidden)
    _refuse_uneven(architecture)
    return architecture


def _refuse_uneven(architecture: Architecture) -> None:
    """Refuse a model whose layers differ in the width of their MLPs or in the number and width of their experts."""
    dense: set[int] = set()
    mixtures: set[tuple[tuple[Expert | None, int], ...]] = set()
    for layer in architecture.layers:
        widths = tuple((projection.expert, projection.width) for projection in layer.projections)
        if layer.has_experts:
            mixtures.add(widths)
        else:
            dense.add(widths[0][1])
    if len(dense) > 1:
        raise ArchitectureError(
            f"the MLPs of {architecture.name} differ in width: {sorted(dense)}", allowed="one width for all layers"
        )
    routed = {width for widths in mixtures for expert, width in widths if expert != SHARED}
    if len(mixtures) > 1 or len(routed) > 1:
        raise ArchitectureError(
            f"the experts of {architecture.name} differ from layer to layer",
            allowed="one number and width of experts for all layers that have any",
        )


def _model_type(module: nn.Module) -> str:
    return str(getattr(getattr(module, "config", None), "model_type", ""))


def _layer(index: int, block: nn.Module, family: Family, name: str, hidden: int) -> Layer:
    mlp = getattr(block, family.mlp, None)
    experts = None if family.experts is None else getattr(mlp, family.experts, None)
    if mlp is not None and experts is not None:
        found = _mixture(index, mlp, experts, family, f"{name}.{family.mlp}", hidden)
    else:
        down = getattr(mlp, family.down, None)
        if mlp is None or not callable(down):
            what = f"{type(mlp).__name__} without {family.down}" if mlp is not None else f"no {family.mlp}"
            raise ArchitectureError(
                f"layer {name} ({type(block).__name__}) is not a dense MLP layer: found {what}{_experts(block)}",
                allowed=f"{family.mlp}.{family.down} in every layer",
            )
        found = (Projection(index, None, down, f"{name}.{family.mlp}.{family.down}"),)
    write, write_name = mlp, family.mlp
    if family.post_norm is not None:
        write, write_name = getattr(block, family.post_norm), family.post_norm
    return Layer(index, block, mlp, write, found, name, f"{name}.{write_name}")


def _mixture(
    index: int, mlp: nn.Module, experts: nn.Module, family: Family, name: str, hidden: int
) -> tuple[Projection, ...]:
    """The down-projections of a mixture-of-experts layer, the shared expert's last."""
    base = unwrapped(experts)
    check_experts(base, f"{name}.{family.experts}", hidden)
    count = len(base.get_parameter("down_proj"))
    found = [Projection(index, at, experts, f"{name}.{family.experts}.down_proj[{at}]") for at in range(count)]
    shared = None if family.shared is None else getattr(mlp, family.shared, None)
    if shared is not None:
        down = getattr(shared, family.down)
        found.append(Projection(index, SHARED, down, f"{name}.{family.shared}.{family.down}"))
    return tuple(found)


def _experts(module: nn.Module) -> str:
    """For an error message: the first mixture-of-experts module in `module`, if there is one."""
    for name, child in module.named_modules():
        if "experts" in name.rsplit(".", 1)[-1] or "Moe" in type(child).__name__.replace("MoE", "Moe"):
            return f"; found the mixture-of-experts module {name or '(root)'} of type {type(child).__name__}"
    return ""
