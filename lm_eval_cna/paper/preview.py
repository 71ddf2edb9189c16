"""What a table would take, before it is run: the user's files are checked, and every model is planned."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_cna.contrast.loading import find_contrast, load_contrast, load_universal_prompts
from lm_eval_cna.contrast.sources import read_spec
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.paper.memory import Machine, Memory, bytes_of, memory_of, this_machine, tokens_of
from lm_eval_cna.paper.plan import PaperRequest, read_prompts
from lm_eval_cna.paper.targets import ModelSize, Target, size_of

#: Tokens of a contrast prompt in its chat template, roughly.
_CONTRAST_TOKENS = 50


@dataclass(frozen=True)
class PlannedModel:
    """What running one model would take."""

    model: str
    """Name or path, as asked for."""
    size: ModelSize | None
    """None where nothing on this machine knows the model's shape."""
    memory: Memory | None
    """None where the size is not known."""
    fits: bool | None
    """Whether this machine has the memory; None where the size is not known."""
    tasks: str
    """The tasks in words, with documents and cells."""
    read: int
    """Tokens read, discovery included."""
    generated: int
    """Tokens generated, if every answer is as long as it may be."""
    differs: tuple[str, ...]
    """Differences from the authors' setup."""


def check(request: PaperRequest) -> None:
    """Find what is wrong in the user's files before anything is loaded.

    Raises:
        ConfigError, ContrastError: a file is missing or not what it should be.
    """
    preset = request.preset
    if request.prompts is not None:
        if not any(asked.task.startswith("jbb_") for asked in preset.asked):
            raise ConfigError(f"--prompts has no meaning for {preset.table}", do="leave it out")
        read_prompts(request.prompts)
    if request.judge is not None and not preset.judged:
        raise ConfigError(f"--judge-model has no meaning for {preset.table}", do="leave it out")
    if request.contrast is not None:
        path = find_contrast(request.contrast)
        if path.suffix == ".jsonl":  # others would be downloaded
            load_contrast(path)


def machine_of(request: PaperRequest) -> Machine:
    """The machine that the request's models would run on."""
    arguments = request.model_args
    return this_machine(device=arguments.get("device"), parallel=bool(arguments.get("parallelize")))


def plan(request: PaperRequest, machine: Machine) -> list[PlannedModel]:
    """What every model would take; nothing is loaded, and no network is needed."""
    return [plan_one(request, target, machine) for target in dict.fromkeys(request.targets)]


def plan_one(request: PaperRequest, target: Target, machine: Machine) -> PlannedModel:
    """What one model would take."""
    size, cells = size_of(target), request.cells()
    asked = [(task, name, request.documents(task)) for task, name, _ in request.tasks_of(target)]
    counts = [(task, documents) for task, _, documents in asked]
    memory = None if size is None else memory_of(size, counts, width=bytes_of(request.dtype_of(target)))
    read, generated = tokens_of(counts, cells=cells)
    discovery = _contrast_prompts(request.contrast_of(target)) + len(load_universal_prompts())
    return PlannedModel(
        model=target.name,
        size=size,
        memory=memory,
        fits=None if memory is None else memory.total <= machine.memory,
        tasks=", ".join(f"{name} ({documents}) x {cells} cells" for _, name, documents in asked) or "discovery only",
        read=read + _CONTRAST_TOKENS * discovery,
        generated=generated,
        differs=request.differs(target),
    )


def _contrast_prompts(name: str) -> int:
    """How many prompts a contrast set has, without downloading anything."""
    path = find_contrast(name)
    if path.suffix == ".jsonl":
        return len(load_contrast(path).prompts)
    spec = read_spec(path)
    return sum(source.choose or 0 for source in (spec.positive, spec.negative))
