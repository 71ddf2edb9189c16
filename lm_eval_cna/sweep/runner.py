"""Runs a sweep: one model load, one cell after another through lm-eval on the same model object.

Every cell's results are a file that lm-eval itself could have written, samples included. A killed sweep continues at
the first cell whose file is missing.
"""

from __future__ import annotations

import gc
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.models.api_models import TemplateAPI
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from lm_eval_cna import entry
from lm_eval_cna.divergence import harmless_kl
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.judging.config import JudgeConfig
from lm_eval_cna.judging.judge import shared_judge
from lm_eval_cna.judging.task import LATER, JudgedTask
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.prompts import chat_template_of
from lm_eval_cna.sweep.cells import Cell, plan_cells
from lm_eval_cna.sweep.config import SweepConfig, TaskSpec
from lm_eval_cna.sweep.interventions import Interventions, prepare
from lm_eval_cna.sweep.judged import judge_run
from lm_eval_cna.sweep.rundir import RunDirectory
from lm_eval_cna.sweep.summary import HARMLESS_KL, summarize

Progress = Callable[[int, int, str], None]
_GENERATED = "generate_until"


@dataclass
class Evaluation:
    """Tasks that one call of lm-eval evaluates: those with the same chat template and few-shot settings.

    Attributes:
        name: names the setting in the run directory ("chat", "plain-5shot").
        chat_template: whether the chat template is applied.
        num_fewshot: few-shot examples, or None for each task's own.
        tasks: task and group objects, loaded once.
        controlled: whether random controls are asked too.
        judged: names of those tasks whose responses a judge grades.
    """

    name: str
    chat_template: bool
    num_fewshot: int | None
    tasks: list[Any]
    controlled: bool
    judged: list[str]


def run_sweep(
    config: SweepConfig,
    *,
    progress: Progress | None = None,
    task_manager: TaskManager | None = None,
    command: list[str] | None = None,
) -> RunDirectory:
    """Run a sweep, or continue one.

    Args:
        config: what to do.
        progress: called with (cells done, cells in all, the cell at hand).
        task_manager: one that knows our tasks; building one takes seconds, so callers of several sweeps share it.
        command: what the user typed, for the manifest.

    Raises:
        CNAError: the configuration, a file, the model or the run directory is not usable.
    """
    entry.register()
    directory = RunDirectory(config.output)
    with directory.lock(), _quiet_lm_eval():
        # Responses are judged when all are generated and the steered model is gone.
        metadata = {"pretrained": config.model, **config.metadata, "judge": LATER}
        manager = task_manager or TaskManager(metadata=metadata)
        _check_tasks(config, manager)
        if config.judge is not None:
            _check_judge(config.judge)
        lm = CNAHFLM(pretrained=config.model, **config.model_args, mode=config.mode)
        lm.quiet = True
        interventions = prepare(config, lm, directory)
        cells = plan_cells(config)
        evaluations = _evaluations(config, lm, manager)
        directory.adopt(
            {
                "plan": {
                    **config.model_dump(mode="json", exclude={"output", "judge"}),
                    "cells": [cell._asdict() | {"key": cell.key} for cell in cells],
                    "interventions": {method: found.sha256 for method, found in interventions.found.items()},
                    "weights_sha256": lm.weights_sha256,
                    "settings": [part.name for part in evaluations],
                    "judged": sorted(task for part in evaluations for task in part.judged),
                },
                "judge": None if config.judge is None else config.judge.public(),
                "architecture": {
                    "name": lm.architecture.name,
                    "num_layers": len(lm.architecture.layers),
                    "mlp_width": lm.architecture.width,
                    "hidden_size": lm.architecture.hidden,
                    "dtype": str(lm.model.dtype).removeprefix("torch."),
                },
                "command": sys.argv if command is None else command,
                "machine": _machine(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        todo = [(cell, part) for cell in cells for part in evaluations if part.controlled or not cell.is_control]
        started = time.monotonic()
        for done, (cell, part) in enumerate(todo):
            name = directory.results_name(cell.key, part.name)
            if progress is not None:
                progress(done, len(todo), cell.key)
            if not directory.has(name):
                lm.steer(interventions.setting(cell))
                results = _evaluate(lm, part, config, manager)
                directory.write_json(name, results, default=handle_non_serializable)
        lm.unsteer()
        if config.harmless_kl and not directory.has(HARMLESS_KL):
            _measure_divergence(lm, interventions, cells, directory)
        del lm, interventions
        if progress is not None:
            progress(len(todo), len(todo), f"{time.monotonic() - started:.0f} s")
        summary = summarize(directory, cells, [part.name for part in evaluations])
        directory.write_text("summary.json", summary.model_dump_json(indent=1, by_alias=True) + "\n")
        if config.judge is not None:
            gc.collect()  # the steered model's memory, for a judge on the same machine
            torch.cuda.empty_cache()
            judge_run(directory, config.judge, progress=progress)
    return directory


def _check_tasks(config: SweepConfig, manager: TaskManager) -> None:
    """Find out about a misspelt task before a model is loaded."""
    for spec in config.tasks:
        if spec.task not in manager.task_index:
            near = [name for name in manager.all_tasks if spec.task.split("_")[0] in name][:5]
            raise ConfigError(
                "unknown task", got=spec.task, allowed=", ".join(near) or None, do="see `lm_eval ls tasks`"
            )


def _check_judge(config: JudgeConfig) -> None:
    """Ask a served judge a trial question before anything is generated; a local one would take the model's memory."""
    try:
        kind = get_model(config.model)
    except (ValueError, ImportError) as error:
        raise ConfigError("judge: no such lm-eval model", got=config.model, do="see `lm_eval ls models`") from error
    if issubclass(kind, TemplateAPI):
        shared_judge(config).check()


def _evaluations(config: SweepConfig, lm: CNAHFLM, manager: TaskManager) -> list[Evaluation]:
    """Group the tasks by their evaluation settings and load each group once."""
    parts: dict[tuple[bool, int | None, bool], Evaluation] = {}
    for spec in config.tasks:
        chat = chat_template_of(lm.tokenizer) is not None if spec.chat_template is None else spec.chat_template
        loaded = manager.load([spec.task])
        controlled = _controlled(spec, loaded["tasks"].values())
        name = "chat" if chat else "plain"
        name += "" if spec.num_fewshot is None else f"-{spec.num_fewshot}shot"
        name += "" if controlled else "-uncontrolled"
        part = parts.setdefault(
            (chat, spec.num_fewshot, controlled), Evaluation(name, chat, spec.num_fewshot, [], controlled, [])
        )
        part.tasks += _outermost(loaded)
        part.judged += [name for name, task in loaded["tasks"].items() if isinstance(task, JudgedTask)]
    return list(parts.values())


def _outermost(loaded: Any) -> list[Any]:
    """The groups and tasks that are in no other group, as `TaskManager.load` takes them back."""
    children = {name for names in loaded["group_map"].values() for name in names}
    named = {**loaded["tasks"], **loaded["groups"]}
    return [item for name, item in named.items() if name not in children]


def _controlled(spec: TaskSpec, tasks: Any) -> bool:
    """Behaviour tasks are controlled: those whose answers are generated, unless the user says otherwise."""
    if spec.controls is not None:
        return spec.controls
    return all(task.get_config("output_type") == _GENERATED for task in tasks)


def _evaluate(lm: CNAHFLM, part: Evaluation, config: SweepConfig, manager: TaskManager) -> dict[str, Any]:
    results: dict[str, Any] = simple_evaluate(
        lm,
        tasks=list(part.tasks),
        num_fewshot=part.num_fewshot,
        apply_chat_template=part.chat_template,
        limit=config.limit,
        log_samples=True,
        task_manager=manager,
    )
    return results


def _measure_divergence(lm: CNAHFLM, interventions: Interventions, cells: list[Cell], directory: RunDirectory) -> None:
    """KL of the first generated token on harmless prompts; lm-eval has no output type for distributions."""
    measured = harmless_kl(
        lm.model,
        lm.tokenizer,
        [interventions.setting(cell) for cell in cells],
        mode=lm.mode,
        chat_template_args=lm.chat_template_args,
        add_bos_token=lm.add_bos_token,
        batch_size=lm.batch_size if isinstance(lm.batch_size, int) else 16,
    )
    kept = {cell.key: asdict(divergence) for cell, divergence in zip(cells, measured, strict=True)}
    directory.write_json(HARMLESS_KL, kept)


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval's remarks below errors: it repeats the same ones for every task and cell."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _machine() -> dict[str, Any]:
    """What a figure's reader wants to know of the machine and the versions."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in ("lm-eval-cna", "lm_eval", "torch", "transformers")},
    }
