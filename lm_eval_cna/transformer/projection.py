"""A down-projection, whose input channels are neurons, in any form in which a model can keep it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lm_eval_cna.errors import ArchitectureError
from lm_eval_cna.transformer import weights
from lm_eval_cna.transformer.neurons import Expert


@dataclass(frozen=True)
class Projection:
    """The down-projection of a dense MLP, a shared expert or a routed expert."""

    layer: int
    """Its decoder layer, from 0."""
    expert: Expert | None
    """A routed expert's number, "shared", or None for a dense MLP."""
    down: nn.Module
    """The module that the model calls, with any adapter wrapper: the projection, whose input [..., width] is the
    neurons' activations; for a routed expert, the module of all experts of the layer."""
    name: str
    """Its name in `model.named_modules()`; for a routed expert, the name of its part of the fused tensor."""

    @property
    def base(self) -> nn.Module:
        """`down` without adapter wrappers: the module that has the weight."""
        return unwrapped(self.down)

    @property
    def is_routed(self) -> bool:
        """Whether it belongs to a routed expert."""
        return isinstance(self.expert, int)

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight, with neurons along `neuron_dim`; for a routed expert a view of the fused tensor.

        It is packed if the model is quantized, and None if the quantizer uses other names (GPTQ, AWQ).
        """
        if isinstance(self.expert, int):
            return self.base.get_parameter("down_proj")[self.expert]
        weight = getattr(self.base, "weight", None)
        return weight if isinstance(weight, torch.Tensor) else None

    @property
    def held(self) -> range:
        """The neurons that this process computes: all, unless the weight is sharded over processes."""
        return weights.held(self.weight, self.neuron_dim, self.width, self.name)

    def channels(self, x: torch.Tensor) -> range:
        """The neurons in an input [..., channels] of the projection."""
        return weights.channels(x.shape[-1], self.held, self.width, self.name)

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """Gather activations [..., neurons held here] to [..., all neurons]; all processes must call this."""
        return weights.gathered(x, self.weight, self.neuron_dim, self.width, self.name)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter (LoRA) wraps the down-projection."""
        return self.base is not self.down

    @property
    def neuron_dim(self) -> int:
        """The weight's dimension of neurons: 1 in `nn.Linear`, 0 in GPT-2's `Conv1D`."""
        if self.is_routed:
            return 0 if self.base.is_transposed else 1
        return 0 if type(self.base).__name__ == "Conv1D" else 1

    @property
    def width(self) -> int:
        """Number of neurons (quantized classes have `in_features` too).

        Raises:
            ArchitectureError: the module is not a linear layer.
        """
        weight = self.weight
        if weight is not None and (self.is_routed or type(self.base).__name__ == "Conv1D"):
            return weight.shape[self.neuron_dim]
        width = getattr(self.base, "in_features", None)
        if not isinstance(width, int):
            raise ArchitectureError(
                f"{self.name} is a {type(self.base).__name__}", allowed="a linear layer or GPT-2's Conv1D"
            )
        return width


def weight_columns(projection: Projection, indices: torch.Tensor) -> torch.Tensor | None:
    """Copy the weight columns of some neurons; sharded weights are gathered and offloaded ones are read.

    Args:
        projection: the down-projection.
        indices: neuron indices [n] on any device.

    Returns:
        [n, hidden] in the weight's dtype; None if a quantizer has packed the weight or it cannot be read.
    """
    base, expert, dim = projection.base, projection.expert, projection.neuron_dim
    name = "down_proj" if isinstance(expert, int) else "weight"
    stored = getattr(base, name, None)
    weight = None if stored is None else weights.whole(stored, base, name)
    if weight is None or weights.is_packed(weight):
        return None
    if isinstance(expert, int):
        weight = weight[expert]
    columns = weight.index_select(dim, indices.to(weight.device))
    return columns if dim == 0 else columns.T.contiguous()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all adapter wrappers, or the module itself."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module
