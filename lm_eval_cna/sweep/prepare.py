"""What a sweep does before it computes: check the request, load the model, plan, write the manifest, self-check."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal, cast

import torch
from lm_eval.api.registry import get_model
from lm_eval.models.api_models import TemplateAPI
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.interventions.compatibility import shape_of
from lm_eval_cna.judging.config import JudgeConfig
from lm_eval_cna.judging.judge import shared_judge
from lm_eval_cna.judging.task import LATER
from lm_eval_cna.models.arguments import check_device, check_dtype
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.directory import SELF_CHECK, RunDirectory
from lm_eval_cna.sweep.config import LOG_FIELDS, SweepConfig
from lm_eval_cna.sweep.interventions import Interventions, rendering_of
from lm_eval_cna.sweep.loading import load_with_interventions
from lm_eval_cna.sweep.loggers import CellLogs
from lm_eval_cna.sweep.plan import SweepPlan, plan_sweep
from lm_eval_cna.validation.self_check import SelfCheck, self_check


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that is planned down to the last batch, before anything is computed."""

    config: SweepConfig
    """What was asked for."""
    directory: RunDirectory
    """The run directory, which has its manifest."""
    manager: TaskManager
    """Loads the tasks."""
    lm: Steered
    """The model, unsteered."""
    interventions: Interventions
    """What cells steer with."""
    plan: SweepPlan
    """Cells, requests and batches."""

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, if any prompt is rendered with it."""
        return self.lm.chat_template(any(evaluation.chat_template for evaluation in self.plan.evaluations))


@dataclass(frozen=True)
class CheckedSweep:
    """A sweep whose request has passed every check that needs no model."""

    config: SweepConfig
    """What was asked for."""
    manager: TaskManager
    """Knows its tasks."""
    logs: CellLogs
    """Where it is logged."""

    @property
    def directory(self) -> RunDirectory:
        """Where it goes."""
        return RunDirectory(self.config.output)


def check_sweep(config: SweepConfig, manager: TaskManager | None = None) -> CheckedSweep:
    """Check directory, device, precision, loggers, tasks and judge before anything is loaded or written.

    Args:
        config: what to do.
        manager: one that knows our tasks; building one takes seconds.

    Raises:
        CNAError: one of them is not usable.
    """
    RunDirectory(config.output).check_plan(_asked_for(config))
    check_device(config.model_args.get("device"))
    check_dtype(config.model_args.get("dtype", "auto"))
    logs = CellLogs(config)
    if manager is not None and config.metadata:
        raise ConfigError("metadata and a task manager are both given", do="give the metadata to the task manager")
    # Responses are judged when all are generated and the steered model is gone.
    manager = manager or TaskManager(metadata={"pretrained": config.model, **config.metadata, "judge": LATER})
    for spec in config.tasks:
        if spec.task not in manager.task_index:
            near = [name for name in manager.all_tasks if spec.task.split("_")[0] in name][:5]
            raise ConfigError(
                "unknown task", got=spec.task, allowed=", ".join(near) or None, do="see `lm_eval ls tasks`"
            )
    if config.judge is not None:
        _check_judge(config.judge)
    return CheckedSweep(config, manager, logs)


def prepare(checked: CheckedSweep, command: list[str] | None = None) -> PreparedSweep:
    """Load the model, find the interventions, plan the batches and write the manifest.

    Args:
        checked: the sweep.
        command: what the user typed, for the manifest.

    Raises:
        CNAError: a file, the model or the run directory is not usable.
    """
    config, manager, directory = checked.config, checked.manager, checked.directory
    lm, interventions = load_with_interventions(config, directory)
    plan = plan_sweep(config, lm, interventions, manager, directory)
    interventions.keep(directory)
    directory.adopt(
        {
            "plan": {
                **_asked_for(config),
                "weights_sha256": lm.weights_sha256,
                "interventions": interventions.hashes,
                "cells": [
                    {**cell._asdict(), "key": cell.key, "context": context}
                    for cell, context in zip(plan.cells, plan.contexts, strict=True)
                ],
                "settings": [evaluation.name for evaluation in plan.evaluations],
                "judged": sorted(task for evaluation in plan.evaluations for task in evaluation.judged),
                "rows": plan.rows,
            },
            "judge": None if config.judge is None else config.judge.public(),
            "architecture": {
                "name": lm.architecture.name,
                **shape_of(lm.architecture).model_dump(include={"num_layers", "mlp_width", "experts", "hidden_size"}),
                "dtype": str(lm.module.dtype).removeprefix("torch."),
            },
            "command": sys.argv if command is None else command,
            "machine": _machine(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    return PreparedSweep(config, directory, manager, lm, interventions, plan)


def _asked_for(config: SweepConfig) -> dict[str, Any]:
    """The part of a manifest's plan that the user decides."""
    return config.model_dump(mode="json", exclude={"output", "judge", *LOG_FIELDS})


def _check_judge(config: JudgeConfig) -> None:
    """Ask a served judge a trial question before anything is generated; a local one would take the model's memory."""
    try:
        kind = get_model(config.model)
    except (ValueError, ImportError) as error:
        raise ConfigError("judge: no such lm-eval model", got=config.model, do="see `lm_eval ls models`") from error
    if issubclass(kind, TemplateAPI):
        shared_judge(config).check()


def _machine() -> dict[str, Any]:
    """The machine and the versions, for whoever reads the numbers."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in ("lm-eval-cna", "lm_eval", "torch", "transformers")},
    }


def self_check_sweep(prepared: PreparedSweep) -> None:
    """Check all interventions of a sweep on its model, and write the result down.

    A continued sweep is checked again, since its model was loaded again, perhaps on another machine.

    Raises:
        SteeringError: the steering does not do what it says; no answer has been computed with it.
    """
    checked = self_check_of(prepared.lm, prepared.config, prepared.interventions, prepared.plan.mode)
    prepared.directory.write_json(SELF_CHECK, checked.model_dump(mode="json"))


def self_check_of(lm: Steered, config: SweepConfig, interventions: Interventions, mode: str) -> SelfCheck:
    """Check the interventions on a model, in the mode of the sweep.

    Raises:
        SteeringError: the steering does not do what it says.
    """
    return self_check(
        lm.module,
        lm.tokenizer,
        interventions.files,
        mode=cast(Literal["rows", "auto", "fold", "hook"], mode),
        scale=config.scale,
        rendering=rendering_of(config, lm),
        architecture=lm.architecture,
    )


def self_check_result(directory: RunDirectory, file: str | None) -> dict[str, Any] | None:
    """What the self-check measured of one intervention, for a cell's results.

    Args:
        directory: the run's.
        file: where the run keeps the intervention; None for the baseline.

    Returns:
        None where the run has no self-check.

    Raises:
        RunError: the file is damaged.
    """
    if not directory.has(SELF_CHECK):
        return None
    try:
        kept = SelfCheck.model_validate(directory.read_json(SELF_CHECK))
    except ValueError as error:
        raise RunError(f"{directory.path / SELF_CHECK} is damaged", do="delete it and run the sweep again") from error
    measured = kept.interventions.get(file or "")
    return {"mode": kept.mode, "noise": kept.noise} | ({} if measured is None else measured.model_dump(mode="json"))
