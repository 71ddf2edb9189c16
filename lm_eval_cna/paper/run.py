"""Run a table model by model; models that do not fit or cannot be loaded are skipped with a reason."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.errors import CNAError, RunError
from lm_eval_cna.files.progress import Progress, named, silent
from lm_eval_cna.paper.memory import GIB, Machine, memory_of
from lm_eval_cna.paper.page import Result, Skipped, write_result
from lm_eval_cna.paper.plan import PaperRequest, write_prompt_tasks
from lm_eval_cna.paper.presets import statement
from lm_eval_cna.paper.rows import PaperRow
from lm_eval_cna.paper.targets import Target, pairs_of


def run(
    request: PaperRequest,
    *,
    machine: Machine,
    progress: Progress = silent,
    command: Sequence[str] = (),
    task_manager: Any = None,
) -> Result:
    """Run a table, or continue it, and write paper.json and paper.md.

    Models that need more memory than `machine` has are skipped. `task_manager` knows our tasks and those of
    `write_prompt_tasks`; None makes one.

    Raises:
        RunError: the output directory holds another plan or cannot be written.
    """
    skipped: list[Skipped] = []
    usable = [target for target in dict.fromkeys(request.targets) if _usable(request, target, machine, skipped)]
    work = _circuits if not request.preset.asked else _sweeps
    rows = work(request, usable, progress, skipped, task_manager)
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
    request: PaperRequest, targets: list[Target], progress: Progress, skipped: list[Skipped], _manager: Any
) -> list[PaperRow]:
    from lm_eval_cna.paper.circuits import Found, find, layer_rows, overlap_rows

    found: dict[Target, Found] = {}
    for done, target in enumerate(targets):
        progress("models", done, len(targets), target.name)
        circuits = _tried(lambda target=target: find(request, target, _path(target, progress)), target, skipped)  # type: ignore[misc]
        if circuits is not None:
            found[target] = circuits
    progress("models", len(targets), len(targets))
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


def _sweeps(
    request: PaperRequest, targets: list[Target], progress: Progress, skipped: list[Skipped], manager: Any
) -> list[PaperRow]:
    from lm_eval.tasks import TaskManager

    from lm_eval_cna import plugin
    from lm_eval_cna.judging.task import LATER
    from lm_eval_cna.paper.sweep_rows import family_rows, gains, sweep_rows
    from lm_eval_cna.sweep.config import parse_config
    from lm_eval_cna.sweep.runner import run_sweep

    rows: list[PaperRow] = []
    scores = {}
    folder = write_prompt_tasks(request)
    for target in targets:
        if not request.tasks_of(target):
            why = "the organism's answers hold no harm to grade; --prompts FILE brings prompts of yours"
            skipped.append(Skipped(model=target.name, why=why))
            continue
        if manager is None:
            progress("indexing lm-eval's tasks", 0, 0)
            plugin.register()
            manager = TaskManager(include_path=None if folder is None else str(folder), metadata={"judge": LATER})

        def sweep(target: Target = target, manager: Any = manager) -> Any:
            config = parse_config(request.sweep(target, _path(target, progress)))
            return read_outcomes(run_sweep(config, progress=named(target.name, progress), task_manager=manager))

        outcomes = _tried(sweep, target, skipped)
        if outcomes is None:
            continue
        rows += sweep_rows(request, target, outcomes)
        if request.preset.judged:
            scores[target] = gains(request, target, outcomes)
    return rows + (family_rows(request, scores) if request.preset.judged else [])


def _tried(work: Callable[[], Any], target: Target, skipped: list[Skipped]) -> Any:
    """Run `work` for one model; if the model fails, record why and return None so that the others go on."""
    import torch

    try:
        return work()
    except RunError:  # about the output directory, not about this model
        raise
    except (CNAError, OSError, torch.OutOfMemoryError) as error:
        skipped.append(Skipped(model=target.name, why=" ".join(str(error).split())[:300] or type(error).__name__))
        return None
    finally:
        gc.collect()  # the model's memory, for the next one
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _path(target: Target, progress: Progress) -> str:
    """Path or name to load; trains the organism if needed."""
    if not target.name.startswith("organism:"):
        return target.name
    from lm_eval_cna.organism.store import ensure_organism

    paths = ensure_organism(progress=progress)
    return str(getattr(paths, target.name.partition(":")[2]))


def _usable(request: PaperRequest, target: Target, machine: Machine, skipped: list[Skipped]) -> bool:
    memory = memory_of(request, target)
    if memory is None or memory.total <= machine.memory:
        return True
    needs, has = memory.total / GIB, machine.memory / GIB
    skipped.append(Skipped(model=target.name, why=f"needs {needs:.1f} GiB, {machine.name} has {has:.1f} GiB"))
    return False
