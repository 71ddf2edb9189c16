"""Try again with smaller batches after an accelerator ran out of memory; results change by rounding only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from lm_eval_cna.transformer.decoder import Architecture

T = TypeVar("T")


def with_less_memory(ask: Callable[[int], T], batch_size: int, *, least: int = 1) -> T:
    """Call a function; each time memory runs out, call it again with half the batch size.

    Args:
        ask: called with the batch size; it starts over each time, so it must have no effect when it fails.
        batch_size: the size to begin with.
        least: the smallest size to try; see `least_of`.

    Raises:
        torch.OutOfMemoryError: even the smallest batch does not fit.
    """
    while True:
        try:
            return ask(batch_size)
        except torch.OutOfMemoryError:
            if batch_size <= least:
                raise
        # Outside the handler, since the error's traceback keeps the memory of the failed call.
        torch.cuda.empty_cache()
        batch_size = max(least, (batch_size + 1) // 2)


def least_of(architecture: Architecture, batch_size: int) -> int:
    """The smallest batch to try: the full one if weights are sharded, since other processes wait in the same batch."""
    return batch_size if architecture.is_cut else 1
