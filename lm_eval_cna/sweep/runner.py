"""Runs a sweep with one load of the model: collect lm-eval's requests, compute them, have lm-eval evaluate each cell.

Each batch is stored as soon as it is done, so a killed sweep loses one batch. A cell's results file is what lm-eval
itself would have written, samples included.
"""

from __future__ import annotations

import functools
import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import lm_eval.utils
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from torch.utils import collect_env

from lm_eval_cna import plugin
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.judging.judge_run import judge_run
from lm_eval_cna.results.directory import HARMLESS_KL, SELF_CHECK, RunDirectory
from lm_eval_cna.results.responses import ResponseStore
from lm_eval_cna.results.summary import generated, summarize
from lm_eval_cna.sweep.batches import Batch
from lm_eval_cna.sweep.config import SweepConfig, check_elsewhere
from lm_eval_cna.sweep.executors.base import Executor, ThisProcess
from lm_eval_cna.sweep.interventions import file_of
from lm_eval_cna.sweep.plan import evaluations_of
from lm_eval_cna.sweep.prepare import (
    CheckedSweep,
    PreparedSweep,
    check_sweep,
    prepare,
    self_check_result,
    self_check_sweep,
)
from lm_eval_cna.sweep.replay import Replay


def run_sweep(
    config: SweepConfig,
    *,
    progress: Progress = silent,
    task_manager: TaskManager | None = None,
    command: list[str] | None = None,
    executor: Executor | None = None,
) -> RunDirectory:
    """Run a sweep, or continue one.

    Args:
        config: what to do.
        progress: told of responses first, then of cells, then of verdicts.
        task_manager: one that knows our tasks; building one takes seconds, so callers of several sweeps share it.
        command: what the user typed, for the manifest.
        executor: where the answers are computed; by default in this process.

    Raises:
        CNAError: the configuration, a file, the model or the run directory is not usable.

    Example:
        >>> from lm_eval_cna import run_sweep
        >>> from lm_eval_cna.organism.store import ensure_organism
        >>> from lm_eval_cna.sweep.config import parse_config
        >>> asked = {"contrast": "organism", "methods": ["cna"], "top_k": [20], "multipliers": [0, 1], "limit": 2}
        >>> asked |= {"model": str(ensure_organism().instruct), "tasks": ["organism_refusal"], "output": "run"}
        >>> directory = run_sweep(parse_config(asked))
        >>> directory.has("summary.json")
        True
    """
    plugin.register()
    directory = RunDirectory(config.output)
    with directory.lock(), lm_eval_once():
        run_checked(check_sweep(config, task_manager), progress=progress, command=command, executor=executor)
    return directory


def run_checked(
    checked: CheckedSweep, *, progress: Progress, command: list[str] | None = None, executor: Executor | None = None
) -> None:
    """Run a sweep that `check_sweep` has checked, in a locked directory and within `lm_eval_once`.

    Raises:
        CNAError: a file, the model or the run directory is not usable.
    """
    if executor is not None:
        check_elsewhere(checked.config)
    prepared, executor = prepare(checked, command), executor or ThisProcess()
    self_check(prepared, progress, executor)
    compute(prepared, executor, progress)
    evaluate(prepared, progress)
    chat_template = prepared.chat_template
    prepared.lm.close()
    del prepared  # and the model's memory with it, for a judge on the same machine
    conclude(checked, chat_template, progress)


def self_check(prepared: PreparedSweep, progress: Progress, executor: Executor | None = None) -> None:
    """Check the steering on the loaded model, unless every answer and the self-check's own file are there.

    Raises:
        SteeringError: the steering does not do what it says.
    """
    if not prepared.lm.computes_here:
        return  # cna-vllm's workers check what they did, whenever they steer
    with ResponseStore(prepared.directory.path) as store:
        todo = _missing(prepared, store)
    if todo or not prepared.directory.has(SELF_CHECK):
        progress("self-check", 0, 1, "m = 1 is the identity, m = 0 is not, undo restores")
        if executor is not None:
            executor.prepare(prepared)
        self_check_sweep(prepared)
        progress("self-check", 1, 1)


def compute(prepared: PreparedSweep, executor: Executor, progress: Progress) -> None:
    """Compute every batch with a missing response and store each in one transaction; then the first-token KL.

    Raises:
        CNAError: the model or the executor cannot go on; what was finished is kept.
    """
    plan, directory = prepared.plan, prepared.directory
    with ResponseStore(directory.path) as store:
        todo = _missing(prepared, store)
        total, left = sum(len(batch.rows) for batch in plan.batches), sum(len(batch.rows) for batch in todo)
        done, tokens, started = total - left, 0, time.monotonic()
        progress("responses", done, total)
        for batch, responses in executor.answers(prepared, todo, progress):
            store.put(
                {
                    (plan.contexts[cell], request.key): response
                    for (cell, request), response in zip(batch.rows, responses, strict=True)
                }
            )
            done += len(batch.rows)
            tokens += sum(response.tokens for response in responses)
            speed = tokens / max(time.monotonic() - started, 1e-9)
            progress("responses", done, total, f"{speed:.0f} tokens/s" if tokens else "")
    if prepared.config.measures_kl and not directory.has(HARMLESS_KL):
        measured = executor.divergence(prepared)
        kept = {cell.key: divergence for cell, divergence in zip(plan.cells, measured, strict=True)}
        directory.write_json(HARMLESS_KL, kept)


def _missing(prepared: PreparedSweep, store: ResponseStore) -> list[Batch]:
    """The batches with a missing response; a cell with a results file needs none, even if the store is gone."""
    plan, directory = prepared.plan, prepared.directory
    known = [store.known(context) for context in plan.contexts]
    needed = [
        {
            request.key
            for evaluation in evaluations_of(cell, plan.evaluations)
            if not directory.has(directory.results_name(cell.key, evaluation.name))
            for request in plan.evaluations[evaluation]
        }
        for cell in plan.cells
    ]
    return [
        batch
        for batch in plan.batches
        if any(request.key in needed[cell] and request.key not in known[cell] for cell, request in batch.rows)
    ]


def evaluate(prepared: PreparedSweep, progress: Progress) -> None:
    """Have lm-eval evaluate every cell from the store, and summarize.

    Raises:
        RunError: a response is missing, or a file cannot be written.
    """
    with ResponseStore(prepared.directory.path) as store:
        _evaluate_cells(prepared, store, progress)
    summary = summarize(
        prepared.directory, prepared.plan.cells, [evaluation.name for evaluation in prepared.plan.evaluations]
    )
    prepared.directory.write_json("summary.json", summary.model_dump(by_alias=True))


def conclude(checked: CheckedSweep, chat_template: str | None, progress: Progress) -> None:
    """Have the judge grade the responses, and log the cells.

    Raises:
        CNAError: the judge or a logger fails; what was finished is kept.
    """
    config, directory = checked.config, checked.directory
    if config.judge is not None:
        gc.collect()
        torch.cuda.empty_cache()
        judge_run(directory, config.judge, progress=progress)
    checked.logs.publish(directory, chat_template=chat_template)


def _evaluate_cells(prepared: PreparedSweep, store: ResponseStore, progress: Progress) -> None:
    lm, plan, directory = prepared.lm, prepared.plan, prepared.directory
    todo = [
        (cell, setting, mode, context, evaluation)
        for cell, setting, mode, context in zip(plan.cells, plan.settings, plan.modes, plan.contexts, strict=True)
        for evaluation in evaluations_of(cell, plan.evaluations)
    ]
    about = lm.engine_info()  # asks the hub, so once
    for done, (cell, setting, mode, context, evaluation) in enumerate(todo):
        name = directory.results_name(cell.key, evaluation.name)
        progress("cells", done, len(todo), cell.key)
        if directory.has(name):
            continue
        info = {**lm.steering_info(setting, mode), "self_check": self_check_result(directory, file_of(cell))}
        responses = store.read(context)
        asked = {request.key for request in plan.evaluations[evaluation]}
        info |= generated(response for key, response in responses.items() if key in asked)
        replay = Replay(lm, responses, about | {"cna": info})
        results = simple_evaluate(
            replay,
            tasks=list(evaluation.tasks),
            num_fewshot=evaluation.num_fewshot,
            apply_chat_template=evaluation.chat_template,
            limit=prepared.config.limit,
            log_samples=True,
            task_manager=prepared.manager,
        )
        directory.write_json(name, results, default=handle_non_serializable)
    progress("cells", len(todo), len(todo))


@contextmanager
def lm_eval_once() -> Iterator[None]:
    """Cache what lm-eval would compute again for every cell with the same result.

    That is the description of the environment (half a second of `pip list` and the like) and the templates of a task
    (compiled for every document, half of the time of an evaluation). Its messages below errors are silenced.
    """
    described = functools.cache(collect_env.get_pretty_env_info)
    compiled = functools.lru_cache(maxsize=4096)(lm_eval.utils.env.from_string)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            mock.patch.object(collect_env, "get_pretty_env_info", described),
            mock.patch.object(lm_eval.utils.env, "from_string", compiled),
        ):
            yield
    finally:
        logger.setLevel(level)
