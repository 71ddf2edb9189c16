"""How much memory a model of a table needs, how much this machine has, and how many tokens its tasks take.

Nothing is loaded or timed: the progress line shows the time left once the first batches have run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_cna.paper.plan import PaperRequest
from lm_eval_cna.paper.presets import PresetTask
from lm_eval_cna.paper.targets import ModelSize, Target, size_of

#: Answers in a batch.
ROWS = 32
FORMULA = (
    f"memory = bytes x parameters (weights) + 2 x bytes x layers x key width x tokens x {ROWS} rows (cache) "
    f"+ 4 x vocabulary x {ROWS} rows (logits) + 1 GiB; tokens as if every answer were as long as it may be"
)
GIB = 2**30
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Machine:
    """Where a model would run."""

    name: str
    """"cpu" or the accelerator's name."""
    memory: int
    """Bytes that a model can have."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needs."""

    weights: int
    """Parameters in the model's precision."""
    cache: int
    """Keys and values of one batch at its longest."""
    logits: int
    """Logits of one step of a batch, in float32."""
    reserve: int
    """Everything that is not counted, such as activations."""

    @property
    def total(self) -> int:
        """The sum of all four."""
        return self.weights + self.cache + self.logits + self.reserve


def memory_of(request: PaperRequest, target: Target) -> Memory | None:
    """Memory that a model needs to answer its tasks; None if nothing on this machine knows the model's size."""
    size = size_of(target)
    if size is None:
        return None
    width = _BYTES.get(request.dtype_of(target), 2)
    return memory_for(size, [task for task, _, _ in request.tasks_of(target)], width=width)


def memory_for(size: ModelSize, tasks: Sequence[PresetTask], *, width: int, rows: int = ROWS) -> Memory:
    """Memory for tasks in batches of `rows`; `width` is the bytes of a parameter, and of a number in the cache."""
    longest = max((task.prompt_tokens + task.new_tokens for task in tasks), default=64)
    cache = 2 * width * size.layers * size.kv_width * longest * rows
    return Memory(width * size.parameters, cache, 4 * size.vocabulary * rows, GIB)


def tokens_of(asked: Sequence[tuple[PresetTask, int]], *, cells: int) -> tuple[int, int]:
    """Tokens that the tasks read and generate over all cells, if every answer is as long as it may be."""
    read = cells * sum(task.prompt_tokens * documents for task, documents in asked)
    return read, cells * sum(task.new_tokens * documents for task, documents in asked)


def this_machine(model_args: Mapping[str, Any]) -> Machine:
    """The machine that models would run on, by cna-hf's arguments `device` and `parallelize` (over all GPUs)."""
    import torch

    device = model_args.get("device")
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type != "cuda":
        return Machine("cpu", _main_memory())
    count = torch.cuda.device_count() if model_args.get("parallelize") else 1
    memory = sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return Machine(torch.cuda.get_device_name(), memory)


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
