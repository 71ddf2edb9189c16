"""Runs many sweeps as one job, such as the models of a leaderboard. Every run is checked before the first starts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from threading import Event

import torch
from transformers import AutoConfig

from lm_eval_cna import plugin
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.errors import CNAError, ConfigError, RunError
from lm_eval_cna.files.progress import Progress, named, silent
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.models.arguments import naming_the_model
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep.config import SweepConfig, check_elsewhere
from lm_eval_cna.sweep.executors.base import Executor
from lm_eval_cna.sweep.prepare import CheckedSweep, PreparedSweep, check_sweep, prepare
from lm_eval_cna.sweep.runner import compute, conclude, evaluate, lm_eval_once, run_checked, self_check

#: Makes the executor of one run, which gives up soon after the event is set.
Executors = Callable[[Event], Executor]


def run_sweeps(
    configs: Sequence[SweepConfig],
    *,
    progress: Progress = silent,
    command: list[str] | None = None,
    executors: Executors | None = None,
) -> list[RunDirectory]:
    """Run many sweeps: one after another here, or all at the same time where `executors` computes them.

    A run that fails does not stop the others; the error at the end names it.

    Args:
        configs: the sweeps, each with an output of its own.
        progress: as for `run_sweep`; stages begin with the name of the run directory.
        command: what the user typed, for the manifests.
        executors: makes the executor of each run, where runs are computed elsewhere and at the same time.

    Raises:
        CNAError: a run is not usable (before the first one starts), or some runs have failed.
    """
    plugin.register()
    checked = []
    for number, config in enumerate(configs):
        progress("checks", number, len(configs), config.output.name)
        checked.append(_check_run(config, elsewhere=executors is not None))
    progress("checks", len(configs), len(configs))
    failed: dict[str, str] = {}
    with lm_eval_once():
        if executors is None:
            for one in checked:
                with _recording(one, failed), one.directory.lock():
                    run_checked(one, progress=named(one.directory.path.name, progress), command=command)
        else:
            _run_together(checked, executors, progress, command, failed)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(configs)} runs failed: "
            + "; ".join(f"{name}: {why}" for name, why in failed.items()),
            do="the others are finished, and the same command goes on with these",
        )
    return [one.directory for one in checked]


def _run_together(
    checked: Sequence[CheckedSweep],
    executors: Executors,
    progress: Progress,
    command: list[str] | None,
    failed: dict[str, str],
) -> None:
    """Start all runs, each with a thread that stores its answers, and evaluate each run when it has all of them.

    The threads call neither lm-eval nor a model, since both keep state in globals.
    """
    stop = Event()
    waiting: dict[Future[None], tuple[CheckedSweep, PreparedSweep]] = {}
    with ThreadPoolExecutor(len(checked)) as threads, ExitStack() as locks:
        try:
            for one in checked:
                with _recording(one, failed):
                    locks.enter_context(one.directory.lock())
                    prepared = prepare(one, command)
                    self_check(prepared, named(one.directory.path.name, progress))
                    waiting[
                        threads.submit(compute, prepared, executors(stop), named(one.directory.path.name, progress))
                    ] = one, prepared
            for finished in as_completed(waiting):
                one, prepared = waiting.pop(finished)
                with _recording(one, failed):
                    finished.result()
                    evaluate(prepared, named(one.directory.path.name, progress))
                    prepared.lm.close()
                    conclude(one, prepared.chat_template, named(one.directory.path.name, progress))
        except BaseException:
            stop.set()  # the threads are waited for, so that what they have is written
            raise


@contextmanager
def _recording(one: CheckedSweep, failed: dict[str, str]) -> Iterator[None]:
    """Record the error of a run and free its model's memory."""
    try:
        yield
    except CNAError as error:
        failed[one.directory.path.name] = str(error)
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _check_run(config: SweepConfig, *, elsewhere: bool) -> CheckedSweep:
    """Check a run without loading its model.

    Raises:
        ConfigError: the run is not usable; the message names it.
    """
    try:
        if elsewhere:
            check_elsewhere(config)
        if "gguf_file" not in config.model_args:
            known = {
                name: config.model_args[name] for name in ("revision", "trust_remote_code") if name in config.model_args
            }
            with naming_the_model(config.model):
                AutoConfig.from_pretrained(config.model, **known)
        for given in (config.circuit, config.vectors):
            if given is not None:
                read_intervention(given)
        if config.circuit is None and not RunDirectory(config.output).begun:
            load_contrast(config.contrast)
        return check_sweep(config)
    except CNAError as error:
        raise ConfigError(f"run {config.output.name}: {error}") from error
