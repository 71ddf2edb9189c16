"""Runs a sweep from one model load: collect what lm-eval asks, compute it in packed batches, let lm-eval evaluate.

Every response is in the store as soon as its batch is done, so a killed sweep loses one batch. Every cell's results are
a file that lm-eval itself could have written, samples included.
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
from lm_eval_cna.judging.judge_run import judge_run
from lm_eval_cna.results.directory import HARMLESS_KL, SELF_CHECK, RunDirectory
from lm_eval_cna.results.responses import ResponseStore
from lm_eval_cna.results.summary import generated, summarize
from lm_eval_cna.sweep.batches import Batch
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.executors.base import Executor, Progress, ThisProcess
from lm_eval_cna.sweep.interventions import file_of
from lm_eval_cna.sweep.plan import parts_of
from lm_eval_cna.sweep.prepare import Begun, Checked, begin, check, prove_sweep, proven_of
from lm_eval_cna.sweep.replay import Replay
from lm_eval_cna.sweep.vllm import check_elsewhere


def run_sweep(
    config: SweepConfig,
    *,
    progress: Progress | None = None,
    task_manager: TaskManager | None = None,
    command: list[str] | None = None,
    executor: Executor | None = None,
) -> RunDirectory:
    """Run a sweep, or continue one.

    Args:
        config: what to do.
        progress: called with (stage, done, in all, detail): responses first, then cells to evaluate, then verdicts.
        task_manager: one that knows our tasks; building one takes seconds, so callers of several sweeps share it.
        command: what the user typed, for the manifest.
        executor: where the answers are computed; by default in this process.

    Raises:
        CNAError: the configuration, a file, the model or the run directory is not usable.
    """
    plugin.register()
    tell = progress or (lambda stage, done, total, detail: None)
    directory = RunDirectory(config.output)
    with directory.lock(), lm_eval_once():
        run_checked(check(config, task_manager), tell=tell, command=command, executor=executor)
    return directory


def run_checked(
    checked: Checked, *, tell: Progress, command: list[str] | None = None, executor: Executor | None = None
) -> None:
    """Run a sweep that is known to be sound, in a locked directory and within `lm_eval_once`.

    Raises:
        CNAError: a file, the model or the run directory is not usable.
    """
    if executor is not None:
        check_elsewhere(checked.config)
    begun, executor = begin(checked, command), executor or ThisProcess()
    self_check(begun, tell, executor)
    compute(begun, executor, tell)
    evaluate(begun, tell)
    chat_template = begun.chat_template
    begun.lm.close()
    del begun  # and the model's memory with it, for a judge on the same machine
    conclude(checked, chat_template, tell)


def self_check(begun: Begun, tell: Progress, executor: Executor | None = None) -> None:
    """Prove the steering on the model that is there, if an answer is missing or the proof is.

    Raises:
        SteeringError: it does not do what it says.
    """
    if begun.lm.engine == "vllm":
        return  # its workers check what they did, whenever they steer
    with ResponseStore(begun.directory.path) as store:
        todo = _missing(begun, store)
    if todo or not begun.directory.has(SELF_CHECK):
        tell("self-check", 0, 1, "m = 1 is the identity, m = 0 is not, undo restores")
        if executor is not None:
            executor.prepare(begun)
        prove_sweep(begun)
        tell("self-check", 1, 1, "")


def compute(begun: Begun, executor: Executor, tell: Progress) -> None:
    """Compute every batch of which a response is missing, whole, and write it in one transaction; then the KL.

    Raises:
        CNAError: the model or the executor cannot go on; what was finished is kept.
    """
    sweep, directory = begun.layout, begun.directory
    with ResponseStore(directory.path) as store:
        todo = _missing(begun, store)
        total, left = sum(len(batch.rows) for batch in sweep.plan), sum(len(batch.rows) for batch in todo)
        done, tokens, started = total - left, 0, time.monotonic()
        tell("responses", done, total, "")
        for batch, responses in executor.answers(begun, todo, tell):
            store.put(
                {
                    (sweep.contexts[cell], request.key): response
                    for (cell, request), response in zip(batch.rows, responses, strict=True)
                }
            )
            done += len(batch.rows)
            tokens += sum(response.tokens for response in responses)
            speed = tokens / max(time.monotonic() - started, 1e-9)
            tell("responses", done, total, f"{speed:.0f} tokens/s" if tokens else "")
    if begun.config.measures_kl and not directory.has(HARMLESS_KL):
        measured = executor.divergence(begun)
        kept = {cell.key: divergence for cell, divergence in zip(sweep.cells, measured, strict=True)}
        directory.write_json(HARMLESS_KL, kept)


def _missing(begun: Begun, store: ResponseStore) -> list[Batch]:
    """The batches of which a response is missing; cells with a results file need none, should the store be gone."""
    sweep, directory = begun.layout, begun.directory
    known = [store.known(context) for context in sweep.contexts]
    needed = [
        {
            request.key
            for part in parts_of(cell, sweep.parts)
            if not directory.has(directory.results_name(cell.key, part.name))
            for request in sweep.parts[part]
        }
        for cell in sweep.cells
    ]
    return [
        batch
        for batch in sweep.plan
        if any(request.key in needed[cell] and request.key not in known[cell] for cell, request in batch.rows)
    ]


def evaluate(begun: Begun, tell: Progress) -> None:
    """Have lm-eval evaluate every cell from the store, and summarize.

    Raises:
        RunError: a response is missing, or a file cannot be written.
    """
    with ResponseStore(begun.directory.path) as store:
        _evaluate_cells(begun, store, tell)
    summary = summarize(begun.directory, begun.layout.cells, [part.name for part in begun.layout.parts])
    begun.directory.write_json("summary.json", summary.model_dump(by_alias=True))


def conclude(checked: Checked, chat_template: str | None, tell: Progress) -> None:
    """Have the judge grade what was said, and log the cells.

    Raises:
        CNAError: the judge or a logger fails; what was finished is kept.
    """
    config, directory = checked.config, checked.directory
    if config.judge is not None:
        gc.collect()
        torch.cuda.empty_cache()
        judge_run(directory, config.judge, progress=functools.partial(tell, "judge"))
    checked.logs.publish(directory, chat_template=chat_template)


def _evaluate_cells(begun: Begun, store: ResponseStore, tell: Progress) -> None:
    lm, sweep, directory = begun.lm, begun.layout, begun.directory
    todo = [
        (cell, setting, mode, context, part)
        for cell, setting, mode, context in zip(sweep.cells, sweep.settings, sweep.modes, sweep.contexts, strict=True)
        for part in parts_of(cell, sweep.parts)
    ]
    about = lm.engine_info()  # asks the hub, so once
    for done, (cell, setting, mode, context, part) in enumerate(todo):
        name = directory.results_name(cell.key, part.name)
        tell("cells", done, len(todo), cell.key)
        if directory.has(name):
            continue
        info = {**lm.steering_info(setting, mode), "self_check": proven_of(directory, file_of(cell))}
        responses = store.read(context)
        asked = {request.key for request in sweep.parts[part]}
        info |= generated(response for key, response in responses.items() if key in asked)
        replay = Replay(lm, responses, about | {"cna": info})
        results = simple_evaluate(
            replay,
            tasks=list(part.tasks),
            num_fewshot=part.num_fewshot,
            apply_chat_template=part.chat_template,
            limit=begun.config.limit,
            log_samples=True,
            task_manager=begun.manager,
        )
        directory.write_json(name, results, default=handle_non_serializable)
    tell("cells", len(todo), len(todo), "")


@contextmanager
def lm_eval_once() -> Iterator[None]:
    """Let lm-eval do and say once what it does and says anew for every cell, with the same outcome.

    Its results file describes the environment (half a second of `pip list` and the like), it compiles a task's
    templates for every document (half of the time of an evaluation whose responses are there already), and it repeats
    its remarks below errors.
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
