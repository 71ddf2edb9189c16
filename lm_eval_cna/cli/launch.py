"""What torchrun and `accelerate launch` tell the processes that they start. Nothing heavy is loaded."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes were started together; 1 where nobody started several."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is; the first, 0, leads."""
    return int(os.environ["RANK"]) if processes() > 1 else 0
