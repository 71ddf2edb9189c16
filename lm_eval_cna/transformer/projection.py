"""One down-projection: the weight whose input channels are neurons, in whatever form the model keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lm_eval_cna.errors import ArchitectureError
from lm_eval_cna.transformer import weights
from lm_eval_cna.transformer.neurons import Expert


@dataclass(frozen=True)
class Projection:
    """One down-projection: of a dense MLP, of a shared expert, or of one routed expert."""

    layer: int
    """The decoder layer it belongs to, from 0."""
    expert: Expert | None
    """A routed expert's number, "shared", or None for a dense MLP."""
    down: nn.Module
    """What the model calls, an adapter's wrapper included: the projection, whose input [..., width] holds the neurons'
    activations, or for a routed expert the module of all the layer's experts."""
    name: str
    """Its name in `model.named_modules()`; for a routed expert, of its part of the fused tensor."""

    @property
    def base(self) -> nn.Module:
        """What is called, without adapter wrappers: the module that holds the weight."""
        return unwrapped(self.down)

    @property
    def is_routed(self) -> bool:
        """Whether this is a routed expert's."""
        return isinstance(self.expert, int)

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight, neurons along `neuron_dim`; `placement` says where its numbers are. A routed expert's is a view.

        Packed where the model is quantized, and None where the quantizer keeps it under other names (GPTQ, AWQ).
        """
        if isinstance(self.expert, int):
            return self.base.get_parameter("down_proj")[self.expert]
        weight = getattr(self.base, "weight", None)
        return weight if isinstance(weight, torch.Tensor) else None

    @property
    def held(self) -> range:
        """The neurons that this process computes: all of them, unless the weight is cut over processes."""
        return weights.held(self.weight, self.neuron_dim, self.width, self.name)

    def channels(self, x: torch.Tensor) -> range:
        """The neurons that an input [..., channels] of the projection holds."""
        return weights.channels(x.shape[-1], self.held, self.width, self.name)

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [..., all neurons] from those [..., neurons held here]; all processes must call this."""
        return weights.gathered(x, self.weight, self.neuron_dim, self.width, self.name)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter (LoRA) wraps the down-projection."""
        return self.base is not self.down

    @property
    def neuron_dim(self) -> int:
        """The dimension of the weight that runs over neurons: 1 as in `nn.Linear`, 0 as in GPT-2's `Conv1D`."""
        if self.is_routed:
            return 0 if self.base.is_transposed else 1
        return 0 if type(self.base).__name__ == "Conv1D" else 1

    @property
    def width(self) -> int:
        """Its neurons, read off the module (quantized classes keep `in_features`)."""
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
    """A copy of the weight's columns for some neurons, gathered or read from where they are.

    Args:
        projection: the down-projection.
        indices: neuron indices [n], on any device.

    Returns:
        [n, hidden], in the weight's dtype; None where a quantizer has packed them.
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
    """What an adapter wraps, or the module itself."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module
