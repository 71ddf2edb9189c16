"""A down-projection, whose input channels are neurons, in any form in which a model can keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import ArchitectureError, CNAError
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
        """The neurons that this process computes: all, unless the weight is sharded over processes.

        Raises:
            ArchitectureError: the weight is sharded in an unknown way.
        """
        cut, width = self._cut, self.width
        if cut is None:
            return range(width)
        # As DTensor shards: equal parts, rounded up, and the last parts are smaller.
        weight: Any = self.weight
        part = -(-width // weight.device_mesh.size(cut))
        start = min(width, part * weight.device_mesh.get_local_rank(cut))
        found = range(start, min(width, start + part))
        if len(found) != weights.local(weight).shape[self.neuron_dim]:
            raise self._unknown_cut()
        return found

    def channels(self, x: torch.Tensor) -> range:
        """The neurons in an input [..., channels]: all, or this process's (some plans shard after the hooks).

        Raises:
            CNAError: it has neither, so steering would change other neurons than asked.
        """
        size, width, here = x.shape[-1], self.width, self.held
        if size not in (width, len(here)):
            raise CNAError(
                f"the input of {self.name} is cut in a way that is not known",
                got=f"{size} channels",
                allowed=" or ".join(map(str, sorted({width, len(here)}))),
                do="load the model without tp_plan",
            )
        return range(width) if size == width else here

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """Gather activations [..., neurons of this process] to [..., all neurons]; all processes must call this.

        Raises:
            CNAError: `x` has neither all neurons nor those of this process.
        """
        if len(self.channels(x)) == self.width:
            return x
        from torch.distributed.tensor import DTensor, Replicate, Shard

        weight: Any = self.weight
        mesh, cut = weight.device_mesh, self._cut
        shape = torch.Size((*x.shape[:-1], self.width))
        spread = DTensor.from_local(
            x.contiguous(),
            mesh,
            [Shard(x.ndim - 1) if at == cut else Replicate() for at in range(mesh.ndim)],
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        )
        whole: torch.Tensor = spread.full_tensor()
        return whole

    @property
    def _cut(self) -> int | None:
        """The mesh dimension over which the neurons are sharded; None if each process has all of them."""
        weight: Any = self.weight
        if not weights.is_cut(weight):
            return None
        along = [(at, placement) for at, placement in enumerate(weight.placements) if not placement.is_replicate()]
        cuts = [at for at, placement in along if getattr(placement, "dim", 0) % weight.ndim == self.neuron_dim]
        if len(cuts) > 1 or any(type(placement).__name__ != "Shard" for _, placement in along):
            raise self._unknown_cut()
        return cuts[0] if cuts else None

    def _unknown_cut(self) -> ArchitectureError:
        return ArchitectureError(
            f"{self.name} is cut over processes in a way that is not known",
            got=str(getattr(self.weight, "placements", None)),
            allowed="equal parts along one dimension",
            do="load the model without tp_plan",
        )

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
    """Copy the weight columns of n neurons; sharded weights are gathered and offloaded ones are read.

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
