"""Means over prompts, group by group, and the running sums behind them.

Sums are float64 on the device that computes the values (float32 on MPS), means float64 on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lm_eval_cna.errors import CNAError

FINITE_ADVICE = "load the model in bfloat16 or float32, and check its weights"


@dataclass(frozen=True)
class Means:
    """Means over prompts of what was read at their last token, float64 on the host.

    In a mixture of experts, a prompt whose last token does not visit an expert counts as zero for the expert's neurons:
    they do nothing to its answer.
    """

    counts: tuple[int, ...]
    """Number of prompts in each group."""
    neurons: torch.Tensor | None = None
    """Activations (the input of every down-projection): [groups, neurons], in the order of `Architecture.layout`."""
    magnitudes: torch.Tensor | None = None
    """Absolute activations, over the prompts of all groups: [neurons]."""
    writes: torch.Tensor | None = None
    """What every MLP adds to the residual stream: [groups, layers, hidden]."""
    blocks: torch.Tensor | None = None
    """The residual stream after every layer: [groups, layers, hidden]."""

    def merged(self, into: Sequence[int | None]) -> Means:
        """The means over unions of groups.

        `into` gives for each group the number of the new group that it joins, or None to leave it out. New groups are
        numbered from 0, and none is empty. If a group is left out, the result has no magnitudes, which are means over
        the prompts of all groups.
        """
        weights = torch.zeros((1 + max(new for new in into if new is not None), len(into)), dtype=torch.float64)
        for group, (new, count) in enumerate(zip(into, self.counts, strict=True)):
            if new is not None:
                weights[new, group] = count
        sizes = weights.sum(dim=1)
        assert bool((sizes > 0).all()), "every new group needs a prompt"
        weights /= sizes.unsqueeze(1)

        def merge(means: torch.Tensor | None) -> torch.Tensor | None:
            return None if means is None else torch.tensordot(weights, means, dims=1)

        return Means(
            tuple(round(size) for size in sizes.tolist()),
            neurons=merge(self.neurons),
            magnitudes=None if None in into else self.magnitudes,
            writes=merge(self.writes),
            blocks=merge(self.blocks),
        )


class RunningSums:
    """Sums over prompts for every layer, one row per group, on the layer's device."""

    def __init__(self, groups: int, layers: int) -> None:
        self._groups = groups
        self._sums: list[torch.Tensor | None] = [None] * layers

    def add(self, layer: int, members: torch.Tensor, values: torch.Tensor) -> None:
        """Add one layer's values [batch, size] to their groups' sums; `members` is one-hot [groups, batch]."""
        # MPS has no float64.
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        total = self._sums[layer]
        if total is None:
            total = values.new_zeros((self._groups, values.shape[1]), dtype=dtype)
            self._sums[layer] = total
        total.addmm_(members.to(values.device, dtype), values.to(dtype))

    @property
    def nbytes(self) -> int:
        """Memory that the sums take, in bytes."""
        return sum(total.nbytes for total in self._sums if total is not None)

    def means(self, counts: Sequence[int], what: str) -> torch.Tensor:
        """Means [groups, size of all layers], float64 on the host. This frees the sums.

        Raises:
            CNAError: a sum of the values, which are called `what`, is not finite, or a layer was never called.
        """
        divisor = torch.tensor(counts, dtype=torch.float64).unsqueeze(1)
        missing = [layer for layer, total in enumerate(self._sums) if total is None]
        if missing:
            raise CNAError(f"layer {missing[0]} was never called in the forward pass")
        sizes = [total.shape[1] for total in self._sums if total is not None]
        result = torch.empty((self._groups, sum(sizes)), dtype=torch.float64)
        for layer, part in enumerate(torch.split(result, sizes, dim=1)):
            total, self._sums[layer] = self._sums[layer], None  # one layer at a time is in memory twice
            assert total is not None
            total = total.cpu().to(torch.float64)
            if not bool(torch.isfinite(total).all()):
                raise CNAError(f"{what} of layer {layer} are not finite (NaN or infinity)", do=FINITE_ADVICE)
            torch.div(total, divisor, out=part)
        return result
