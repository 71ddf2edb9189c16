"""Runs a sweep from one model load: collect what lm-eval asks, compute it in packed batches, let lm-eval evaluate.

Every response is in the store as soon as its batch is done, so a killed sweep loses one batch. Every cell's results are
a file that lm-eval itself could have written, samples included.
"""

from __future__ import annotations

import functools
import gc
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from unittest import mock

import lm_eval.utils
import torch
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from torch.utils import collect_env

from lm_eval_cna import entry
from lm_eval_cna.divergence import harmless_kl
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.judging.config import JudgeConfig
from lm_eval_cna.judging.judge import shared_judge
from lm_eval_cna.judging.task import LATER
from lm_eval_cna.models.arguments import check_device, check_dtype
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.sweep.answers import ROWS, compute
from lm_eval_cna.sweep.config import LOG_FIELDS, SweepConfig
from lm_eval_cna.sweep.interventions import in_chat, prepare
from lm_eval_cna.sweep.judged import judge_run
from lm_eval_cna.sweep.layout import Layout, lay_out, parts_of
from lm_eval_cna.sweep.logs import CellLogs
from lm_eval_cna.sweep.replay import Replay
from lm_eval_cna.sweep.rundir import RunDirectory
from lm_eval_cna.sweep.store import ResponseStore
from lm_eval_cna.sweep.summary import HARMLESS_KL, summarize

#: (stage, done, in all, detail)
Progress = Callable[[str, int, int, str], None]
_SCORED_ROWS = 32  # rows of a batch of log-likelihoods where the user does not say


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
        progress: called with (stage, done, in all, detail): responses first, then cells to evaluate, then verdicts.
        task_manager: one that knows our tasks; building one takes seconds, so callers of several sweeps share it.
        command: what the user typed, for the manifest.

    Raises:
        CNAError: the configuration, a file, the model or the run directory is not usable.
    """
    entry.register()
    tell = progress or (lambda stage, done, total, detail: None)
    directory = RunDirectory(config.output)
    with directory.lock(), _quiet_lm_eval(), _done_once():
        asked_for = config.model_dump(mode="json", exclude={"output", "judge", *LOG_FIELDS})
        # What can be wrong is found before anything is loaded or written.
        directory.check_plan(asked_for)
        check_device(config.model_args.get("device"))
        check_dtype(config.model_args.get("dtype", "auto"))
        logs = CellLogs(config)
        if task_manager is not None and config.metadata:
            raise ConfigError("metadata and a task manager are both given", do="give the metadata to the task manager")
        # Responses are judged when all are generated and the steered model is gone.
        metadata = {"pretrained": config.model, **config.metadata, "judge": LATER}
        manager = task_manager or TaskManager(metadata=metadata)
        _check_tasks(config, manager)
        if config.judge is not None:
            _check_judge(config.judge)
        lm = _load(config)
        interventions = prepare(config, lm, directory)
        sweep = lay_out(config, lm, interventions, manager, directory)
        interventions.keep(directory)
        directory.adopt(
            {
                "plan": {
                    **asked_for,
                    "weights_sha256": lm.weights_sha256,
                    "interventions": interventions.hashes,
                    "cells": [
                        {**cell._asdict(), "key": cell.key, "context": context}
                        for cell, context in zip(sweep.cells, sweep.contexts, strict=True)
                    ],
                    "settings": [part.name for part in sweep.parts],
                    "judged": sorted(task for part in sweep.parts for task in part.judged),
                    "rows": sweep.rows,
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
        with ResponseStore(directory.path) as store:
            _answer(lm, sweep, directory, store, tell)
            if config.harmless_kl and not directory.has(HARMLESS_KL):
                _measure_divergence(lm, config, sweep, directory)
            _evaluate(lm, sweep, directory, store, manager, config.limit, tell)
            said = {
                cell.key: store.read(context).values()
                for cell, context in zip(sweep.cells, sweep.contexts, strict=True)
            }
        summary = summarize(directory, sweep.cells, [part.name for part in sweep.parts], said)
        directory.write_text("summary.json", summary.model_dump_json(indent=1, by_alias=True) + "\n")
        chat_template = lm.chat_template(any(part.chat_template for part in sweep.parts))
        del lm, interventions, sweep
        if config.judge is not None:
            gc.collect()  # the steered model's memory, for a judge on the same machine
            torch.cuda.empty_cache()
            judge_run(directory, config.judge, progress=functools.partial(tell, "judge"))
        logs.publish(directory, chat_template=chat_template)
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


def _load(config: SweepConfig) -> CNAHFLM:
    arguments = {name: value for name, value in config.model_args.items() if name != "batch_size"}
    # Rows are hooks with several settings; what runs one cell at a time in such a sweep is a hook too.
    mode = "hook" if config.mode in ("auto", ROWS) else config.mode
    lm = CNAHFLM(pretrained=config.model, **arguments, mode=mode)
    lm.quiet = True
    given = config.model_args.get("batch_size", "auto")
    lm.batch_size_per_gpu = _SCORED_ROWS if given == "auto" else int(given)
    return lm


def _answer(lm: CNAHFLM, sweep: Layout, directory: RunDirectory, store: ResponseStore, tell: Progress) -> None:
    """Compute every batch of which a response is missing, whole, and write it in one transaction."""
    known = [store.known(context) for context in sweep.contexts]
    # Cells with a results file need no response, should the store be gone.
    needed = [
        {
            request.key
            for part in parts_of(cell, sweep.parts)
            if not directory.has(directory.results_name(cell.key, part.name))
            for request in sweep.parts[part]
        }
        for cell in sweep.cells
    ]
    todo = [
        batch
        for batch in sweep.plan
        if any(request.key in needed[cell] and request.key not in known[cell] for cell, request in batch.rows)
    ]
    total, left = sum(len(batch.rows) for batch in sweep.plan), sum(len(batch.rows) for batch in todo)
    done, tokens, started = total - left, 0, time.monotonic()
    tell("responses", done, total, "")
    for batch, responses in compute(lm, sweep.settings, todo, sweep.prompts, mode=sweep.mode):
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


def _evaluate(
    lm: CNAHFLM,
    sweep: Layout,
    directory: RunDirectory,
    store: ResponseStore,
    manager: TaskManager,
    limit: int | None,
    tell: Progress,
) -> None:
    """Have lm-eval evaluate every cell from the store."""
    todo = [
        (cell, setting, context, part)
        for cell, setting, context in zip(sweep.cells, sweep.settings, sweep.contexts, strict=True)
        for part in parts_of(cell, sweep.parts)
    ]
    about = HFLM.get_model_info(lm)  # asks the hub, so once
    for done, (cell, setting, context, part) in enumerate(todo):
        name = directory.results_name(cell.key, part.name)
        tell("cells", done, len(todo), cell.key)
        if directory.has(name):
            continue
        replay = Replay(lm, store.read(context), about | {"cna": lm.steering_info(setting, sweep.mode)})
        results = simple_evaluate(
            replay,
            tasks=list(part.tasks),
            num_fewshot=part.num_fewshot,
            apply_chat_template=part.chat_template,
            limit=limit,
            log_samples=True,
            task_manager=manager,
        )
        directory.write_json(name, results, default=handle_non_serializable)
    tell("cells", len(todo), len(todo), "")


def _measure_divergence(lm: CNAHFLM, config: SweepConfig, sweep: Layout, directory: RunDirectory) -> None:
    """KL of the first generated token on harmless prompts; lm-eval has no output type for distributions."""
    measured = harmless_kl(
        lm.model,
        lm.tokenizer,
        sweep.settings,
        mode=lm.mode,
        chat_template=in_chat(config.tasks),
        chat_template_args=lm.chat_template_args,
        add_bos_token=lm.add_bos_token,
        batch_size=lm.batch_size,
    )
    kept = {cell.key: asdict(divergence) for cell, divergence in zip(sweep.cells, measured, strict=True)}
    directory.write_json(HARMLESS_KL, kept)


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval's remarks below errors, which it repeats for every task and cell."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _done_once() -> Iterator[None]:
    """Let lm-eval do once a sweep what it does anew for every cell, with the same outcome.

    Its results file describes the environment (half a second of `pip list` and the like), and it compiles a task's
    templates for every document (half of the time of an evaluation whose responses are there already).
    """
    described = functools.cache(collect_env.get_pretty_env_info)
    compiled = functools.lru_cache(maxsize=4096)(lm_eval.utils.env.from_string)
    with (
        mock.patch.object(collect_env, "get_pretty_env_info", described),
        mock.patch.object(lm_eval.utils.env, "from_string", compiled),
    ):
        yield


def _machine() -> dict[str, Any]:
    """What a figure's reader wants to know of the machine and the versions."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in ("lm-eval-cna", "lm_eval", "torch", "transformers")},
    }
