"""The plan of a sweep: cells with their settings, requests, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import read_plan
from lm_eval_cna.steering.rows import why_not_rows
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep.batches import ROWS, Batch, Request, plan_batches
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.grid import plan_cells
from lm_eval_cna.sweep.interventions import Interventions
from lm_eval_cna.sweep.requests import Evaluation, Prompts, collect, load_evaluations


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, ready to be computed."""

    cells: list[Cell]
    """The grid."""
    settings: list[Setting]
    """What each cell does to the model."""
    mode: str
    """How the model is steered: "rows", "fold" or "hook". "auto" where rows cannot be steered: circuits fold if they
    can, and are hooked otherwise; vectors are hooked."""
    modes: list[str]
    """The mode of each cell, "auto" resolved."""
    contexts: list[str]
    """Each cell's identity in the response store."""
    evaluations: dict[Evaluation, list[Request]]
    """The evaluation settings, with their requests."""
    rows: int
    """Generated answers in a batch."""
    batches: list[Batch]
    """All batches of all cells."""
    prompts: Prompts
    """The encoded prompts."""


def plan_sweep(
    config: SweepConfig, lm: Steered, interventions: Interventions, manager: TaskManager, directory: RunDirectory
) -> SweepPlan:
    """Collect all requests and put them into batches.

    Args:
        config: the sweep.
        lm: the model: tokenizes, and runs nothing.
        interventions: what cells steer with.
        manager: loads the tasks.
        directory: the run directory; a sweep that is continued there keeps its batch size.

    Raises:
        ConfigError: the model has no room for a task's prompts and answers.
        SteeringError: a cell cannot be steered in the mode that is asked for.
    """
    cells = plan_cells(config)
    settings = [interventions.setting(cell) for cell in cells]
    mode = mode_of(config, lm, settings)
    modes = [_resolved(mode, lm, setting) for setting in settings]
    evaluations = {
        evaluation: collect(evaluation, lm, manager, config.limit)
        for evaluation in load_evaluations(config, lm, manager)
    }
    asked = [
        [request for evaluation in evaluations_of(cell, evaluations) for request in evaluations[evaluation]]
        for cell in cells
    ]
    prompts = Prompts(lm, list(dict.fromkeys(request for mine in asked for request in mine)))
    given = config.model_args.get("batch_size", "auto")
    rows = prompts.rows(lm) if given == "auto" else int(given)
    if directory.begun:  # the same batches, even on a machine with other memory
        rows = read_plan(directory).rows or rows
    return SweepPlan(
        cells=cells,
        settings=settings,
        mode=mode,
        modes=modes,
        contexts=[lm.fingerprint_of(setting, of_cell) for setting, of_cell in zip(settings, modes, strict=True)],
        evaluations=evaluations,
        rows=rows,
        batches=plan_batches(asked, prompts.lengths, rows=rows, packed=mode == ROWS),
        prompts=prompts,
    )


def mode_of(config: SweepConfig, lm: Steered, settings: Sequence[Setting]) -> str:
    """How a sweep steers: in the mode that is asked for, or by default in rows if all settings allow it.

    Raises:
        SteeringError: rows are asked for where they cannot be steered.
    """
    if config.mode not in ("auto", ROWS) or not lm.shares_batches:
        return config.mode
    reason = next((reason for setting in settings if (reason := why_not_rows(setting, lm.architecture))), None)
    if reason is None:
        return ROWS
    if config.mode == ROWS:
        raise SteeringError(f"cannot steer rows: {reason}", got=config.mode, allowed="auto, fold, hook")
    return "auto"


def _resolved(mode: str, lm: Steered, setting: Setting) -> str:
    if mode != "auto" or setting.intervention is None:
        return mode
    return lm.resolve_mode(setting.intervention, "auto")


def evaluations_of(cell: Cell, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """The evaluation settings under which a cell is asked."""
    return [evaluation for evaluation in evaluations if evaluation.controlled or not cell.is_control]
