"""Run a table: model after model, what does not fit or cannot be reached skipped with a word, then every row.

Floor 6.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.analysis.rates import Record
from lm_eval_cna.contrast import load_contrast, load_universal_prompts
from lm_eval_cna.contrast_sources import read_spec
from lm_eval_cna.errors import CNAError, ConfigError, ContrastError, RunError
from lm_eval_cna.paper.estimate import Estimate, Machine, bytes_of, estimate, this_machine
from lm_eval_cna.paper.plan import Request, read_prompts, write_prompt_tasks
from lm_eval_cna.paper.presets import statement
from lm_eval_cna.paper.rows import Row
from lm_eval_cna.paper.targets import Size, Target, pairs_of, size_of
from lm_eval_cna.resources import contrasts_dir

Progress = Callable[[str, int, int, str], None]
SCHEMA: Literal["lm-eval-cna/paper/1"] = "lm-eval-cna/paper/1"
_GIB = 2**30
#: Tokens of a prompt of a contrast set in its chat template, roughly.
_CONTRAST_TOKENS = 50


class Skipped(Record):
    """A model that has no rows, and the reason."""

    model: str
    why: str


class Result(Record):
    """A table as it came out.

    Attributes:
        table, title: which.
        protocol: its name; `statement` says what it does.
        published: how the authors measured it.
        ours: what is different here in every row.
        rows: the comparisons.
        skipped: models without rows.
        command: what the user typed.
        created: when, in UTC.
    """

    schema_: Literal["lm-eval-cna/paper/1"] = Field(default=SCHEMA, alias="schema")
    table: str
    title: str
    protocol: str
    statement: str
    published: tuple[str, ...]
    ours: tuple[str, ...]
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    command: tuple[str, ...]
    created: str


class Planned(Record):
    """What running one model would take.

    Attributes:
        model: as asked for.
        size: parameters, or None where nothing here knows it.
        source: where that comes from.
        memory: bytes.
        seconds: of computing.
        fits: whether this machine has the memory; None where nothing is known.
        tasks: what is asked, in words.
        differs: what is not like for like.
    """

    model: str
    size: int | None
    source: str
    memory: int | None
    seconds: float | None
    fits: bool | None
    tasks: str
    differs: tuple[str, ...]


def check(request: Request) -> None:
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
        path = Path(request.contrast)
        if path.suffix == ".jsonl" or (contrasts_dir() / f"{request.contrast}.jsonl").is_file():
            load_contrast(request.contrast)
        elif not path.is_file() and not (contrasts_dir() / f"{request.contrast}.yaml").is_file():
            raise ContrastError("no such contrast set", got=request.contrast, allowed="a packaged name or a file")


def machine_of(request: Request) -> Machine:
    """The machine that the request's models would run on."""
    arguments = request.model_args
    return this_machine(
        device=arguments.get("device"),
        dtype=request.dtype_of(request.targets[0]),
        parallel=bool(arguments.get("parallelize")),
    )


def plan(request: Request, machine: Machine) -> list[Planned]:
    """What every model would take; nothing is loaded, and no network is needed."""
    return [_planned(request, target, machine) for target in dict.fromkeys(request.targets)]


def run(
    request: Request,
    *,
    machine: Machine,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    task_manager: Any = None,
) -> Result:
    """Run a table for its models, or go on with it, and write paper.json and paper.md.

    Args:
        request: what to do.
        machine: what models must fit into.
        progress: called with (stage, done, in all, detail).
        command: what the user typed.
        task_manager: one that knows our tasks and those of `write_prompt_tasks`; by default one is made.

    Raises:
        RunError: the output directory holds another plan or cannot be written.
    """
    from lm_eval_cna.paper.page import write_result

    tell = progress or (lambda stage, done, total, detail: None)
    skipped: list[Skipped] = []
    usable = [target for target in dict.fromkeys(request.targets) if _usable(request, target, machine, skipped)]
    work = _circuits if not request.preset.asked else _sweeps
    rows = work(request, usable, tell, skipped, task_manager)
    result = Result(
        table=request.preset.table,
        title=request.preset.title,
        protocol=request.protocol,
        statement=statement(request.protocol),
        published=request.preset.published,
        ours=request.preset.ours,
        rows=tuple(rows),
        skipped=tuple(skipped),
        command=tuple(command),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_result(result, request.output)
    return result


def _circuits(
    request: Request, targets: list[Target], tell: Progress, skipped: list[Skipped], _manager: Any
) -> list[Row]:
    from lm_eval_cna.paper.circuits import Found, find, layer_rows, overlap_rows

    found: dict[Target, Found] = {}
    for done, target in enumerate(targets):
        tell("models", done, len(targets), target.name)
        circuits = _tried(lambda target=target: find(request, target, _path(target, tell)), target, skipped)  # type: ignore[misc]
        if circuits is not None:
            found[target] = circuits
    tell("models", len(targets), len(targets), "")
    if request.preset.table == "layers":
        return [row for target, circuits in found.items() for row in layer_rows(request, target, circuits)]
    rows = []
    for base, instruct in pairs_of(request.targets):
        if base in found and instruct in found:
            rows += overlap_rows(request, base, instruct, found[base], found[instruct])
        else:
            for half in {base, instruct} & found.keys():
                skipped.append(Skipped(model=half.name, why="its twin is missing"))
    return rows


def _sweeps(request: Request, targets: list[Target], tell: Progress, skipped: list[Skipped], manager: Any) -> list[Row]:
    from lm_eval.tasks import TaskManager

    from lm_eval_cna import entry
    from lm_eval_cna.judging.task import LATER
    from lm_eval_cna.paper.swept import family_rows, gains, sweep_rows
    from lm_eval_cna.sweep.config import parse_config
    from lm_eval_cna.sweep.runner import run_sweep

    rows: list[Row] = []
    scores = {}
    folder = write_prompt_tasks(request)
    for target in targets:
        if not request.tasks_of(target):
            why = "the organism's answers hold no harm to grade; --prompts FILE brings prompts of yours"
            skipped.append(Skipped(model=target.name, why=why))
            continue
        if manager is None:
            tell("indexing lm-eval's tasks", 0, 0, "")
            entry.register()
            manager = TaskManager(include_path=None if folder is None else str(folder), metadata={"judge": LATER})

        def sweep(target: Target = target, manager: Any = manager) -> Any:
            config = parse_config(request.sweep(target, _path(target, tell)))

            def told(stage: str, done: int, total: int, detail: str) -> None:
                tell(f"{target.name}: {stage}", done, total, detail)

            return read_outcomes(run_sweep(config, progress=told, task_manager=manager))

        outcomes = _tried(sweep, target, skipped)
        if outcomes is None:
            continue
        rows += sweep_rows(request, target, outcomes)
        if request.preset.judged:
            scores[target] = gains(request, target, outcomes)
    return rows + (family_rows(request, scores) if request.preset.judged else [])


def _tried(work: Callable[[], Any], target: Target, skipped: list[Skipped]) -> Any:
    """Do a model's work; what keeps this one model from it is a word in the table, and the rest goes on."""
    import torch

    try:
        return work()
    except RunError:  # the user's output directory, and no model's fault
        raise
    except (CNAError, OSError, torch.OutOfMemoryError) as error:
        skipped.append(Skipped(model=target.name, why=" ".join(str(error).split())[:300] or type(error).__name__))
        return None
    finally:
        gc.collect()  # the model's memory, for the next one
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _path(target: Target, tell: Progress) -> str:
    """What to load; an organism is trained where there is none."""
    if not target.name.startswith("organism:"):
        return target.name
    from lm_eval_cna.organism.store import ensure_organism

    paths = ensure_organism(progress=lambda stage, done, total: tell(f"training {stage}", done, total, ""))
    return str(getattr(paths, target.name.partition(":")[2]))


def _usable(request: Request, target: Target, machine: Machine, skipped: list[Skipped]) -> bool:
    planned = _planned(request, target, machine)
    if planned.fits is not False or planned.memory is None:
        return True
    needs, has = planned.memory / _GIB, machine.memory / _GIB
    skipped.append(Skipped(model=target.name, why=f"needs {needs:.1f} GiB, {machine.name} has {has:.1f} GiB"))
    return False


def _planned(request: Request, target: Target, machine: Machine) -> Planned:
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


def _needed(request: Request, target: Target, size: Size, asked: Sequence[Any], machine: Machine) -> Estimate:
    # Tables of circuits: once whole, and five times four fifths.
    passes = 5 if not request.preset.asked else 1
    read = _CONTRAST_TOKENS * (passes * _contrast_prompts(request.contrast_of(target)) + len(load_universal_prompts()))
    width = bytes_of(request.dtype_of(target))
    return estimate(size, asked, cells=request.cells(), read=read, width=width, machine=machine)


def _contrast_prompts(name: str) -> int:
    """How many prompts a contrast set has, without fetching anything."""
    path = next(
        (p for p in (Path(name), contrasts_dir() / f"{name}.jsonl", contrasts_dir() / f"{name}.yaml") if p.is_file()),
        None,
    )
    if path is None:
        return 0
    if path.suffix == ".jsonl":
        found = load_contrast(path)
        return len(found.positive) + len(found.negative)
    spec = read_spec(path)
    return sum(source.choose or 0 for source in (spec.positive, spec.negative))
