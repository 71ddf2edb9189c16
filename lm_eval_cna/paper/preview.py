"""Before a table is run: whether its files are sound, and what every model would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_cna.contrast.loading import find_contrast, load_contrast, load_universal_prompts
from lm_eval_cna.contrast.sources import read_spec
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.paper.estimate import Estimate, Machine, bytes_of, estimate, this_machine
from lm_eval_cna.paper.plan import PaperRequest, read_prompts
from lm_eval_cna.paper.targets import ModelSize, Target, size_of

#: Tokens of a prompt of a contrast set in its chat template, roughly.
_CONTRAST_TOKENS = 50


class Planned(AnalysisRecord):
    """What running one model would take."""

    model: str
    """As asked for."""
    size: int | None
    """Parameters, or None where nothing here knows it."""
    source: str
    """Where that comes from."""
    memory: int | None
    """Bytes."""
    seconds: float | None
    """Of computing."""
    fits: bool | None
    """Whether this machine has the memory; None where nothing is known."""
    tasks: str
    """What is asked, in words."""
    differs: tuple[str, ...]
    """What is not like for like."""


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
        if path.suffix == ".jsonl":  # others would be fetched
            load_contrast(path)


def machine_of(request: PaperRequest) -> Machine:
    """The machine that the request's models would run on."""
    arguments = request.model_args
    return this_machine(
        device=arguments.get("device"),
        dtype=request.dtype_of(request.targets[0]),
        parallel=bool(arguments.get("parallelize")),
    )


def plan(request: PaperRequest, machine: Machine) -> list[Planned]:
    """What every model would take; nothing is loaded, and no network is needed."""
    return [plan_one(request, target, machine) for target in dict.fromkeys(request.targets)]


def plan_one(request: PaperRequest, target: Target, machine: Machine) -> Planned:
    """What one model would take."""
    size = size_of(target)
    asked = [(asked, request.documents(asked)) for asked, _, _ in request.tasks_of(target)]
    needed: Estimate | None = None
    if size is not None:
        needed = _needed(request, target, size, asked, machine)
    words = [f"{name} ({documents}) x {request.cells()} cells" for (_, name, _), (_, documents) in zip(
        request.tasks_of(target), asked, strict=True
    )]  # fmt: skip
    return Planned(
        model=target.name,
        size=None if size is None else size.parameters,
        source="not known here" if size is None else size.source,
        memory=None if needed is None else needed.memory,
        seconds=None if needed is None else needed.seconds,
        fits=None if needed is None else needed.memory <= machine.memory,
        tasks=", ".join(words) or "discovery only",
        differs=request.differs(target),
    )


def _needed(request: PaperRequest, target: Target, size: ModelSize, asked: Sequence[Any], machine: Machine) -> Estimate:
    read = _CONTRAST_TOKENS * (_contrast_prompts(request.contrast_of(target)) + len(load_universal_prompts()))
    width = bytes_of(request.dtype_of(target))
    return estimate(size, asked, cells=request.cells(), read=read, width=width, machine=machine)


def _contrast_prompts(name: str) -> int:
    """How many prompts a contrast set has, without fetching anything."""
    path = find_contrast(name)
    if path.suffix == ".jsonl":
        return len(load_contrast(path).prompts)
    spec = read_spec(path)
    return sum(source.choose or 0 for source in (spec.positive, spec.negative))
