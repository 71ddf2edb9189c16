"""A sweep in several processes, started together by torchrun or `accelerate launch`: the first leads, others follow.

Each process loads the model and computes its share of the batches; the leader alone plans, writes the run directory and
evaluates. Where the weights are sharded over the processes (`tp_plan`), all of them compute every batch in step
instead. Messages are JSON, as bytes through torch.distributed's gloo, and never a pickle.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from lm_eval_cna import errors
from lm_eval_cna.errors import RunError
from lm_eval_cna.files.progress import Progress
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.directory import HARMLESS_KL, RunDirectory
from lm_eval_cna.results.responses import Response
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep.batches import Batch
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.executors.base import ThisProcess
from lm_eval_cna.sweep.executors.transfer import pack_batch, pack_sweep, unpack_responses
from lm_eval_cna.sweep.executors.worker import Worker, reply_of
from lm_eval_cna.sweep.interventions import Interventions, find_interventions
from lm_eval_cna.sweep.loading import load
from lm_eval_cna.sweep.prepare import PreparedSweep, self_check_of

_PATIENCE = timedelta(weeks=52)  # a process may compute one batch for as long as it takes
Message = dict[str, Any]
_T = TypeVar("_T")


class Processes:
    """Messages between the leader and the other processes. A context manager: at its end the others are told to end.

    Every process of the run must make one, which waits for all of them.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._reachable, self._awaiting = True, False
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"  # the second for weights that are cut over processes
        if not distributed.is_initialized():
            distributed.init_process_group(backend, timeout=_PATIENCE)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.release()

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which owns the run directory."""
        return self.rank == 0

    def broadcast(self, message: Message) -> None:
        """Send a message from the leader to all others, which `receive` it."""
        if self._reachable:
            self._awaiting = message["do"] != "end"
            data = _encoded(message)
            distributed.broadcast(torch.tensor([len(data)]), src=0)
            distributed.broadcast(data, src=0)

    def receive(self) -> Message:
        """Wait for the leader's next message."""
        size = torch.zeros(1, dtype=torch.long)
        distributed.broadcast(size, src=0)
        data = torch.empty(int(size), dtype=torch.uint8)
        distributed.broadcast(data, src=0)
        return _decoded(data)

    def answer(self, message: Message) -> None:
        """Send an answer to the leader, which must `collect` it."""
        data = _encoded(message)
        distributed.send(torch.tensor([len(data)]), dst=0)
        distributed.send(data, dst=0)

    def collect(self) -> list[Message]:
        """One answer from each other process, by rank.

        Raises:
            RunError: a process is gone.
        """
        found = []
        for rank in range(1, self.count):
            try:
                size = torch.zeros(1, dtype=torch.long)
                distributed.recv(size, src=rank)
                data = torch.empty(int(size), dtype=torch.uint8)
                distributed.recv(data, src=rank)
            except RuntimeError as error:
                self._reachable = False
                raise RunError(
                    f"process {rank} of the sweep is gone", do="run the same command again: what is there is kept"
                ) from error
            found.append(_decoded(data))
        self._awaiting = False
        return found

    def release(self) -> None:
        """Tell the others to end. Safe to call twice, and in a follower.

        A process whose answer is still awaited is not told; torchrun ends all processes when one of them fails.
        """
        if self.leads and not self._awaiting:
            self.broadcast({"do": "end"})
        self._reachable = False

    def abandon(self) -> None:
        """Send the others nothing more: they wait inside a computation until torchrun ends them."""
        self._reachable = False


class ProcessExecutor:
    """Computes a sweep's batches in all processes.

    Args:
        processes: the processes of this sweep; this one leads.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._here = ThisProcess()
        self._opened = self._checking = False

    def prepare(self, prepared: PreparedSweep) -> None:
        """Send the sweep to the others; where weights are sharded, start their part of the self-check too."""
        self._open(prepared)
        if prepared.lm.lockstep:
            self._processes.broadcast({"do": "self-check"})
            self._checking = True

    def answers(
        self, prepared: PreparedSweep, batches: Sequence[Batch], progress: Progress
    ) -> Iterator[tuple[Batch, list[Response]]]:
        """In rounds of one batch for each process. Batches next to each other are of similar size, so waits are short.

        Raises:
            CNAError: a process cannot go on; what the others found is there.
        """
        processes, lockstep = self._processes, prepared.lm.lockstep
        if not self._opened:  # nothing is left to compute but the KL
            self._open(prepared)
        if self._checking:
            _values(processes.collect())
        width = 1 if lockstep else processes.count
        for start in range(0, len(batches), width):
            mine, *theirs = batches[start : start + width]
            here = functools.partial(self._compute, prepared, mine, progress)
            packed = [pack_batch(batch) for batch in ([mine] * (processes.count - 1) if lockstep else theirs)]
            found, values = self._all({"do": "compute", "batches": packed}, here, lockstep)
            yield mine, found
            for batch, value in zip(theirs, values, strict=False):  # in the last round some have nothing to do
                yield batch, unpack_responses(value)
        if not (lockstep and prepared.config.harmless_kl and not prepared.directory.has(HARMLESS_KL)):
            processes.release()  # and their memory, while the leader evaluates

    def divergence(self, prepared: PreparedSweep) -> list[dict[str, Any]]:
        """By the leader alone, or by all in step."""
        if not prepared.lm.lockstep:
            return self._here.divergence(prepared)
        found, _ = self._all({"do": "divergence"}, lambda: self._here.divergence(prepared), True)
        self._processes.release()
        return found

    def _open(self, prepared: PreparedSweep) -> None:
        packed_sweep = _as_text(pack_sweep(prepared))
        compare = functools.partial(_compare_weights, prepared.lm, prepared.plan.settings)
        self._all({"do": "open", "sweep": packed_sweep}, compare, prepared.lm.lockstep)
        self._opened = True

    def _compute(self, prepared: PreparedSweep, batch: Batch, progress: Progress) -> list[Response]:
        ((_, responses),) = self._here.answers(prepared, [batch], progress)
        return responses

    def _all(self, order: Message, here: Callable[[], _T], lockstep: bool) -> tuple[_T, list[Any]]:
        """Send an order to the others and do this process's part meanwhile; returns its result and theirs."""
        self._processes.broadcast(order)
        try:
            found = here()
        except BaseException:
            if lockstep:  # they wait for this process in the middle of a forward pass
                self._processes.abandon()
            else:
                self._processes.collect()
            raise
        return found, _values(self._processes.collect())


def follow(processes: Processes, config: SweepConfig) -> None:
    """Follow the leader's orders until it says that the work is done.

    Args:
        processes: the processes of this sweep; this one does not lead.
        config: the leader's configuration.

    Raises:
        CNAError: the model cannot be loaded here.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # the leader logs the same messages
    lm = load(config)
    if lm.lockstep:
        # Discovery is in step too, and what the leader found counts.
        find_interventions(config, lm, RunDirectory(config.output))
    worker, mode = Worker(lm), ""
    while (order := processes.receive())["do"] != "end":
        if order["do"] == "open":
            reply, mode = worker.open(_as_bytes(order["sweep"])), order["sweep"]["mode"]
            if "value" in reply:
                _compare_weights(lm, worker.settings)
        elif order["do"] == "self-check":
            reply = reply_of(functools.partial(_self_check, lm, config, worker.interventions, mode))
        elif order["do"] == "divergence":
            reply = worker.divergence()
        else:
            mine = order["batches"][processes.rank - 1 : processes.rank]
            reply = worker.compute(mine[0]) if mine else {"value": None}
            if lm.lockstep and "value" in reply:
                reply = {"value": None}  # the leader has it
        processes.answer(reply)


def _self_check(lm: Steered, config: SweepConfig, interventions: Interventions, mode: str) -> None:
    self_check_of(lm, config, interventions, mode)  # the leader writes it down


def _compare_weights(lm: Steered, settings: Sequence[Setting]) -> None:
    """Compare the weights with those that the interventions were made on.

    Sharded weights need all processes for it. The model remembers what differs, so the leader alone can write it into
    results files.
    """
    if lm.lockstep:
        for setting in settings:
            if setting.intervention is not None:
                lm.warnings_about(setting.intervention)


def _values(replies: Sequence[Message]) -> list[Any]:
    """The values that the others answered, by rank.

    Raises:
        CNAError: one of them replied with an error; it names the class.
    """
    for rank, reply in enumerate(replies, start=1):
        if "error" in reply:
            raise getattr(errors, reply["error"], RunError)(f"process {rank}: {reply['message']}")
    return [reply["value"] for reply in replies]


def _as_text(packed_sweep: Message) -> Message:
    """A packed sweep with files as base64, which JSON can hold."""
    files = [{**one, "bytes": base64.b64encode(one["bytes"]).decode("ascii")} for one in packed_sweep["interventions"]]
    return {**packed_sweep, "interventions": files}


def _as_bytes(packed_sweep: Message) -> Message:
    files = [{**one, "bytes": base64.b64decode(one["bytes"])} for one in packed_sweep["interventions"]]
    return {**packed_sweep, "interventions": files}


def _encoded(message: Message) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(message).encode("ascii")), dtype=torch.uint8)


def _decoded(data: torch.Tensor) -> Message:
    message: Message = json.loads(data.numpy().tobytes())
    return message
