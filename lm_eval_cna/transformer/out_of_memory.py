"""What to do where an accelerator has not enough memory: the same in smaller batches.

Results do not depend on the batch size but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from lm_eval_cna.transformer.decoder import Architecture

T = TypeVar("T")


def with_less_memory(ask: Callable[[int], T], batch_size: int, *, least: int = 1) -> T:
    """Ask for something; where memory runs out, again from the start with half as many rows a batch.

    Args:
        ask: called with the batch size; it must leave nothing behind when it fails.
        batch_size: to begin with.
        least: fewer rows are not tried, and the error goes on; see `least_of`.

    Raises:
        torch.OutOfMemoryError: not even so few rows fit; the command line says it in a line.
    """
    while True:
        try:
            return ask(batch_size)
        except torch.OutOfMemoryError:
            if batch_size <= least:
                raise
        # Outside of the handler: the error's traceback holds what the failed attempt had allocated.
        torch.cuda.empty_cache()
        batch_size = max(least, (batch_size + 1) // 2)


def least_of(architecture: Architecture, batch_size: int) -> int:
    """The fewest rows to try: all where weights are cut, since the other processes wait in the middle of the batch."""
    return batch_size if architecture.is_cut else 1
