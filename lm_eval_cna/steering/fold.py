"""Scale neurons by editing the weights in memory: no cost per token, and undone by putting the saved columns back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def fold_columns(weight: torch.Tensor, dim: int, neurons: Sequence[int], multiplier: float) -> Callable[[], Any]:
    """Scale the columns of some neurons, which lie along `dim`; the returned function puts them back, bit for bit.

    Example:
        >>> weight = torch.ones(1, 3)
        >>> undo = fold_columns(weight, dim=1, neurons=[1], multiplier=0.5)
        >>> weight.tolist()
        [[1.0, 0.5, 1.0]]
        >>> undo().tolist()
        [[1.0, 1.0, 1.0]]
    """
    indices = torch.tensor(neurons, dtype=torch.long, device=weight.device)
    saved = weight.index_select(dim, indices)
    # At m = 0 a product would keep the sign of zero and turn an infinite weight into NaN.
    weight.index_copy_(dim, indices, saved * multiplier if multiplier else torch.zeros_like(saved))
    return lambda: weight.index_copy_(dim, indices, saved)
