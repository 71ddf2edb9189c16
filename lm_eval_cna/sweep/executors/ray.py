"""Computes a sweep on a Ray cluster: each worker loads the model once and is handed one batch after another.

The sweep's own process writes the run directory. It stores each batch as soon as it is back and hands out again what a
lost worker held. Ray's own retries are off, since they do not know what is stored. Ray is imported where it is used.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import nn

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.progress import Progress
from lm_eval_cna.results.directory import HARMLESS_KL
from lm_eval_cna.results.responses import Response
from lm_eval_cna.sweep.batches import Batch
from lm_eval_cna.sweep.executors.ray_workers import Needs, RayJob, RayWorkers
from lm_eval_cna.sweep.executors.transfer import pack_sweep, unpack_responses
from lm_eval_cna.sweep.prepare import PreparedSweep

LOCAL = "local"
_LOCAL_OBJECTS = 256 * 2**20  # bytes that Ray may hold here: batches and answers are small


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connect to a Ray cluster; at the end, stop one that was started here and leave one that was joined.

    Args:
        address: HOST:PORT of a running cluster, "auto" for the one of this machine, or "local" to start one here.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--ray needs the package ray", do="pip install 'lm-eval-cna[ray]'") from error
    if ray.is_initialized():
        yield
        return
    if "://" in address or not (address in (LOCAL, "auto") or address.rpartition(":")[2].isdecimal()):
        raise ConfigError(
            "--ray", got=address, allowed="local, auto or HOST:PORT", do="run the command on a machine of the cluster"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    more = {"include_dashboard": False, "object_store_memory": _LOCAL_OBJECTS} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, RuntimeError, ValueError) as error:  # none there, or one of another version
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot join a Ray cluster: {first}",
            got=address,
            do="start one with `ray start --head`, or say --ray local",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class RayExecutor:
    """Computes one sweep on the cluster that this process is connected to (see `cluster`).

    Args:
        cpus_per_task: of each worker.
        gpus_per_task: of each worker; by default 1 where the cluster has any, else none.
        stop: ends the computing with an error soon after it is set.
    """

    def __init__(
        self, *, cpus_per_task: float = 1, gpus_per_task: float | None = None, stop: Event | None = None
    ) -> None:
        self._needs = Needs(cpus_per_task, gpus_per_task)
        self._stop = stop
        self._measured: list[dict[str, Any]] | None = None

    def prepare(self, prepared: PreparedSweep) -> None:
        """Nothing to prepare: the self-check runs in this process, before any worker is started."""

    def answers(
        self, prepared: PreparedSweep, batches: Sequence[Batch], progress: Progress
    ) -> Iterator[tuple[Batch, list[Response]]]:
        """Hand the batches to workers, and the KL with them, so that each worker loads the model once.

        Raises:
            CNAError: a worker replies with an error, or workers are lost repeatedly.
        """
        jobs = [RayJob(batch) for batch in batches]
        if prepared.config.harmless_kl and not prepared.directory.has(HARMLESS_KL):
            jobs.append(RayJob(None))
        if not jobs:
            return
        packed = pack_sweep(prepared)
        free_weights(prepared)
        with RayWorkers(packed, self._needs, progress, self._stop) as workers:
            for job, value in workers.work(jobs):
                if job.batch is None:
                    self._measured = value
                else:
                    yield job.batch, unpack_responses(value)

    def divergence(self, prepared: PreparedSweep) -> list[dict[str, Any]]:
        """What a worker measured beside the batches.

        Raises:
            CNAError: as `answers`.
        """
        assert self._measured is not None, "answers comes first"
        return self._measured


def free_weights(prepared: PreparedSweep) -> None:
    """Free the model's weights: from here on it only renders prompts and is described in results files.

    Quantized weights stay, since the description of such a model reads them.
    """
    for setting, mode in zip(prepared.plan.settings, prepared.plan.modes, strict=True):
        prepared.lm.steering_info(setting, mode)  # looks at weights, once
    model = prepared.lm.module
    if getattr(model, "hf_quantizer", None) is not None:
        return
    remove_hook_from_submodules(model)  # of a model that is cut over devices
    shapes: dict[int, nn.Parameter] = {}  # tied weights stay one parameter
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shape = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            setattr(module, name, shapes.setdefault(id(parameter), shape))
    gc.collect()
    torch.cuda.empty_cache()
