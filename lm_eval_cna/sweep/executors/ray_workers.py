"""Workers on a Ray cluster: started where there is room, given batches, and replaced when they are lost.

`ray.util.ActorPool` cannot do this: it does not say which batch a lost worker had, so that batch could neither be
handed out again nor be counted as lost. It also gives a worker only one batch at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from lm_eval_cna import errors
from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.files.progress import Progress
from lm_eval_cna.sweep.batches import Batch
from lm_eval_cna.sweep.executors.transfer import pack_batch
from lm_eval_cna.sweep.executors.worker import Reply, Worker

#: How often one batch, or in a row the loading of the model, may be lost with a worker before the sweep gives up.
TRIES = 3
#: Batches that a worker holds: the one it computes and the next, so that it does not wait for the sweep's process.
_HELD = 2
_LOOK_AROUND = 5.0  # seconds between looks at the cluster's nodes
_PATIENCE = 600.0  # seconds without a node that has room for a worker


@dataclass(frozen=True)
class Needs:
    """What one worker takes of a node."""

    cpus: float = 1
    """Cores; torch uses as many threads."""
    gpus: float | None = None
    """GPUs, or a share of one; None for 1 where the cluster has any, else none."""

    def __post_init__(self) -> None:
        if not self.cpus > 0:
            raise ConfigError("--cpus-per-task", got=self.cpus, allowed="a number above 0")
        if self.gpus is not None and not self.gpus >= 0:
            raise ConfigError("--gpus-per-task", got=self.gpus, allowed="0 or more")


@dataclass(eq=False)
class RayJob:
    """One thing to compute."""

    batch: Batch | None
    """The batch, or None for the KL on harmless prompts."""
    lost: int = 0
    """How often a worker was lost while it computed this."""


@dataclass(eq=False)
class _RayWorker:
    """One actor and what it has been given."""

    actor: Any
    """Ray's handle."""
    node: str | None = None
    """The machine it is on; None until it has loaded the model."""
    held: deque[RayJob] = field(default_factory=deque)
    """Its jobs, the one at work first."""


class RayWorkers:
    """Workers for one sweep. A context manager: at its end all of them are stopped.

    Args:
        packed: the packed sweep.
        needs: what each worker takes.
        progress: told how many workers are ready, of how many, and where.
        stop: once it is set, no more work is done.
    """

    def __init__(self, packed: Mapping[str, Any], needs: Needs, progress: Progress, stop: Event | None = None) -> None:
        import ray

        self._ray = ray
        self._progress = progress
        self._stop = stop or Event()
        gpus = needs.gpus if needs.gpus is not None else float(bool(ray.cluster_resources().get("GPU")))
        self._needs = {"CPU": needs.cpus, **({"GPU": gpus} if gpus else {})}
        # What came back is kept by the sweep, so Ray itself never tries again.
        options = {"num_cpus": needs.cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._kind = ray.remote(**options)(Worker)
        self._packed = ray.put(dict(packed))
        self._workers: list[_RayWorker] = []
        self._pending: dict[
            Any, tuple[_RayWorker, RayJob | None]
        ] = {}  # Ray's reference -> worker and job; None: loads the model
        self._never_opened = 0
        self._looked = self._room_seen = -_PATIENCE
        self._shown: tuple[int, int] | None = None

    def __enter__(self) -> RayWorkers:
        if self._room() < 1:
            needs = " and ".join(f"{number:g} {name}" for name, number in self._needs.items())
            raise ConfigError(
                f"no machine of the Ray cluster has {needs} for a task",
                got=[_resources(node) for node in self._ray.nodes() if node["Alive"]],
                do="give other --cpus-per-task and --gpus-per-task, or add a machine",
            )
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            self._stop_worker(worker)
        self._workers.clear()

    def work(self, jobs: Sequence[RayJob]) -> Iterator[tuple[RayJob, Any]]:
        """Compute all jobs; yields each with its value as soon as it is back.

        Raises:
            CNAError: a worker says that it cannot do its job, or a job is lost with its worker `TRIES` times.
        """
        queue, left = deque(jobs), len(jobs)
        while left:
            if self._stop.is_set():
                raise RunError("stopped", do=_CONTINUE)
            self._start_workers(queue)
            self._hand_out(queue)
            self._show()
            for reference in self._back():
                worker, job = self._pending.pop(reference)
                reply = self._collect(reference, worker, job, queue)
                if reply is None:
                    continue
                value = _value(reply)
                if job is None:
                    worker.node, self._never_opened = value, 0
                else:
                    worker.held.remove(job)
                    left -= 1
                    yield job, value

    def _back(self) -> list[Any]:
        """What has come back. Waits for the first, but at most a second, so that new machines are seen meanwhile."""
        if not self._pending:
            time.sleep(1.0)
            return []
        done: list[Any] = self._ray.wait(list(self._pending), timeout=1.0)[0]
        return done

    def _start_workers(self, queue: deque[RayJob]) -> None:
        """Start as many workers as there is room and work for, also on machines that came later."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AROUND:
            return
        self._looked = now
        room = self._room()
        if room or self._workers:
            self._room_seen = now
        elif now - self._room_seen > _PATIENCE:
            raise RunError("the Ray cluster has no machine left with room for a task", do=_CONTINUE)
        opening = sum(worker.node is None for worker in self._workers)
        while len(self._workers) < room and opening < len(queue):
            worker = _RayWorker(self._kind.remote())
            self._pending[worker.actor.open.remote(self._packed)] = worker, None
            self._workers.append(worker)
            opening += 1

    def _hand_out(self, queue: deque[RayJob]) -> None:
        """Give every ready worker enough to do, and stop those for whom nothing is left."""
        for worker in [one for one in self._workers if one.node is not None]:
            while queue and len(worker.held) < _HELD:
                job = queue.popleft()
                actor = worker.actor
                reference = (
                    actor.divergence.remote() if job.batch is None else actor.compute.remote(pack_batch(job.batch))
                )
                self._pending[reference] = worker, job
                worker.held.append(job)
        if not queue:
            for worker in [one for one in self._workers if not one.held]:
                self._workers.remove(worker)
                self._stop_worker(worker)

    def _collect(self, reference: Any, worker: _RayWorker, job: RayJob | None, queue: deque[RayJob]) -> Reply | None:
        """What a worker replied; None if it is lost, and then its job goes back to the head of the queue.

        Raises:
            RunError: the job was lost for the last time.
        """
        try:
            reply: Reply = self._ray.get(reference)
            return reply
        except self._ray.exceptions.RayTaskError:  # not the user's fault, nor the machine's: a bug, with its traceback
            raise
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[0]
        first_sign = worker in self._workers
        if first_sign:
            self._workers.remove(worker)
            self._stop_worker(worker)
            self._looked = -_PATIENCE  # so that another is started at once
        if job is None:
            self._never_opened += 1
            if self._never_opened >= TRIES:
                raise RunError(
                    f"{TRIES} workers in a row were lost while they loaded the model: {why}",
                    do=f"is there memory for it on every machine? {_CONTINUE}",
                )
            return None
        if first_sign:
            worker.held[0].lost += 1  # of what it held, the job that it was at
        worker.held.remove(job)
        if job.lost >= TRIES:
            raise RunError(
                f"{TRIES} workers were lost over one batch: {why}",
                do=f"a smaller batch_size needs less memory; {_CONTINUE}",
            )
        queue.appendleft(job)
        return None

    def _stop_worker(self, worker: _RayWorker) -> None:
        for reference in [
            reference for reference, (whose, job) in self._pending.items() if whose is worker and job is None
        ]:
            del self._pending[reference]
        with suppress(self._ray.exceptions.RayError, ValueError):  # it is gone already
            self._ray.kill(worker.actor, no_restart=True)

    def _room(self) -> int:
        """Workers that the cluster's machines have room for, including what is in use now."""
        return sum(
            min(int(node["Resources"].get(name, 0) // number) for name, number in self._needs.items())
            for node in self._ray.nodes()
            if node["Alive"]
        )

    def _show(self) -> None:
        nodes = [worker.node for worker in self._workers if worker.node is not None]
        if self._workers and self._shown != (len(nodes), len(self._workers)):
            self._shown = len(nodes), len(self._workers)
            where = ", ".join(f"{nodes.count(node)} on {node}" for node in dict.fromkeys(nodes))
            self._progress("workers", len(nodes), len(self._workers), where or "loading the model")


_CONTINUE = "what was finished is kept, and the same command continues"


def _resources(node: Mapping[str, Any]) -> dict[str, float]:
    return {name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")}


def _value(reply: Reply) -> Any:
    """The value in a worker's reply.

    Raises:
        CNAError: the worker replied with an error; it names the class.
    """
    if "error" in reply:
        raise getattr(errors, reply["error"])(f"on {reply['node']}: {reply['message']}")
    return reply["value"]
