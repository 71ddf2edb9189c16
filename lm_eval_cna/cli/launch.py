"""The environment variables of torchrun and `accelerate launch`. Nothing heavy is imported."""

from __future__ import annotations

import os


def processes() -> int:
    """Number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Index of this process; process 0 leads."""
    return int(os.environ["RANK"]) if processes() > 1 else 0
