"""How much memory and time a table takes on this machine: stated formulas, two figures of the machine measured.

It is there to decide whether to start: the machine's speed is that of the moment, downloads are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_cna.paper.presets import PresetTask
from lm_eval_cna.paper.targets import ModelSize

FORMULA = (
    "memory = bytes x parameters + 2 x bytes x layers x key width x tokens x rows (cache) + 4 x vocabulary x rows "
    "(logits) + 1 GiB, rows = 32; time = 2 x parameters x tokens read / (F / 2) + the larger of 2 x parameters x "
    "tokens generated / (F / 2) and steps x weight bytes / B, steps = tokens generated / rows; F and B are this "
    "machine's, measured now by a matrix product and a copy"
)
ROWS = 32
_RESERVE = 2**30
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Of a matrix product's speed, what a model reaches.
_SHARE = 0.5


@dataclass(frozen=True)
class Machine:
    """Where a model would run."""

    name: str
    """"cpu" or the accelerator's name."""
    memory: int
    """Bytes that a model can have."""
    flops: float
    """Floating point operations a second of a matrix product in the model's precision."""
    bandwidth: float
    """Bytes a second that memory delivers."""


@dataclass(frozen=True)
class Estimate:
    """What a model takes: bytes of memory, and seconds."""

    memory: int
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights, the cache of keys and values, the logits of a step, and all that is not counted."""

    weights: int
    cache: int
    logits: int
    reserve: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.logits + self.reserve


def bytes_of(dtype: str) -> int:
    """Bytes of a parameter; an unknown precision counts as 2."""
    return _BYTES.get(dtype, 2)


def estimate(
    size: ModelSize, asked: Sequence[tuple[PresetTask, int]], *, cells: int, read: int, width: int, machine: Machine
) -> Estimate:
    """What a model needs.

    Args:
        size: the model.
        asked: tasks, each with its number of documents.
        cells: how often every task is asked.
        read: tokens that discovery reads.
        width: bytes of a parameter.
        machine: where it would run.
    """
    parts = memory_of(size, asked, width=width)
    tokens, generated = tokens_of(asked, cells=cells)
    speed = _SHARE * machine.flops
    steps = generated / ROWS
    seconds = 2 * size.parameters * (read + tokens) / speed
    seconds += max(2 * size.parameters * generated / speed, steps * parts.weights / machine.bandwidth)
    return Estimate(parts.total, seconds)


def memory_of(size: ModelSize, asked: Sequence[tuple[PresetTask, int]], *, width: int, rows: int = ROWS) -> Memory:
    """What a model needs to be in memory and answer, in bytes.

    Args:
        size: the model.
        asked: tasks, each with its number of documents.
        width: bytes of a parameter, and of a number of the cache.
        rows: answers in a batch.
    """
    longest = max((task.prompt_tokens + task.new_tokens for task, _ in asked), default=64)
    cache = 2 * width * size.layers * size.kv_width * longest * rows
    return Memory(width * size.parameters, cache, 4 * size.vocabulary * rows, _RESERVE)


def tokens_of(asked: Sequence[tuple[PresetTask, int]], *, cells: int) -> tuple[int, int]:
    """How many tokens are read and how many are generated, if every answer is as long as it may be."""
    read = cells * sum(task.prompt_tokens * documents for task, documents in asked)
    return read, cells * sum(task.new_tokens * documents for task, documents in asked)


def this_machine(*, device: str | None, dtype: str, parallel: bool) -> Machine:
    """Measure the machine, for about a second.

    Args:
        device: as cna-hf takes it.
        dtype: the model's precision.
        parallel: whether the model is spread over all accelerators.
    """
    import torch

    kind = getattr(torch, dtype) if dtype in _BYTES else torch.bfloat16
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    accelerated = torch.device(device).type == "cuda"
    if accelerated:
        count = torch.cuda.device_count()
        memory = sum(torch.cuda.get_device_properties(i).total_memory for i in range(count if parallel else 1))
        name, side = torch.cuda.get_device_name(), 8192
    else:
        memory, name, side = _main_memory(), "cpu", 512
    square = torch.rand(side, side, dtype=kind, device=device)
    block = torch.rand(2**24, device=device)

    def timed(work: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(4):
            started = time.perf_counter()
            work()
            if accelerated:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return max(best, 1e-9)

    flops = 2 * side**3 / timed(lambda: square @ square)
    return Machine(name, memory, flops, 2 * 4 * block.numel() / timed(block.clone))


def _main_memory() -> int:
    """Bytes that a process may still take: what the system has free, or the container's limit."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        (free,) = (int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable"))
    except (OSError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, max(limit - used, 0))
