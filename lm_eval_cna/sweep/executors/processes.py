"""A sweep in several processes, started together by torchrun or `accelerate launch`: the first leads, others follow.

Each process loads the model and computes its share of the batches; the leader alone plans, owns the run directory and
evaluates. Where the weights are cut over the processes (`tp_plan`), all of them compute every batch in step instead.
What travels is JSON, as bytes through torch.distributed's gloo: never a pickle.
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
    """Plain data between the leader and the others. A context manager: leaving it ends the others' work.

    Every process of the run must make one, which waits for all of them.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._listened_to, self._owed = True, False
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

    def tell(self, message: Message) -> None:
        """Say something to all others, who `hear` it. The leader's."""
        if self._listened_to:
            self._owed = message["do"] != "end"
            data = _encoded(message)
            distributed.broadcast(torch.tensor([len(data)]), src=0)
            distributed.broadcast(data, src=0)

    def hear(self) -> Message:
        """What the leader says, waiting for it."""
        size = torch.zeros(1, dtype=torch.long)
        distributed.broadcast(size, src=0)
        data = torch.empty(int(size), dtype=torch.uint8)
        distributed.broadcast(data, src=0)
        return _decoded(data)

    def answer(self, message: Message) -> None:
        """Answer the leader, who has to `collect`."""
        data = _encoded(message)
        distributed.send(torch.tensor([len(data)]), dst=0)
        distributed.send(data, dst=0)

    def collect(self) -> list[Message]:
        """An answer of every other process, by rank.

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
                self._listened_to = False
                raise RunError(
                    f"process {rank} of the sweep is gone", do="run the same command again: what is there is kept"
                ) from error
            found.append(_decoded(data))
        self._owed = False
        return found

    def release(self) -> None:
        """Let the others end. Safe to call twice, and by those that follow.

        Who still owes an answer does not hear this, and is left to torchrun, which ends all when one of them fails.
        """
        if self.leads and not self._owed:
            self.tell({"do": "end"})
        self._listened_to = False

    def desert(self) -> None:
        """Expect nothing of the others any more: they wait in the middle of a computation, until they are ended."""
        self._listened_to = False


class Together:
    """Shares a sweep's batches out to the processes.

    Args:
        processes: those of this sweep; this one leads.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._here = ThisProcess()
        self._opened = self._proving = False

    def prepare(self, prepared: PreparedSweep) -> None:
        """Send the sweep to the others; where weights are cut, have them make the self-check too, in step with ours."""
        self._open(prepared)
        if prepared.lm.lockstep:
            self._processes.tell({"do": "prove"})
            self._proving = True

    def answers(
        self, prepared: PreparedSweep, batches: Sequence[Batch], progress: Progress
    ) -> Iterator[tuple[Batch, list[Response]]]:
        """In rounds of one batch for each process; neighbours in the plan are of one size, so nobody waits for long.

        Raises:
            CNAError: a process cannot go on; what the others found is there.
        """
        processes, lockstep = self._processes, prepared.lm.lockstep
        if not self._opened:  # nothing is left to compute but the KL
            self._open(prepared)
        if self._proving:
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
        parcel = _as_text(pack_sweep(prepared))
        look = functools.partial(_look, prepared.lm, prepared.plan.settings)
        self._all({"do": "open", "parcel": parcel}, look, prepared.lm.lockstep)
        self._opened = True

    def _compute(self, prepared: PreparedSweep, batch: Batch, progress: Progress) -> list[Response]:
        ((_, responses),) = self._here.answers(prepared, [batch], progress)
        return responses

    def _all(self, order: Message, here: Callable[[], _T], lockstep: bool) -> tuple[_T, list[Any]]:
        """Have the others do something while this process does its part; returns this part, and theirs."""
        self._processes.tell(order)
        try:
            found = here()
        except BaseException:
            if lockstep:  # they wait for this process in the middle of a forward pass
                self._processes.desert()
            else:
                self._processes.collect()
            raise
        return found, _values(self._processes.collect())


def follow(processes: Processes, config: SweepConfig) -> None:
    """Compute what the leader says, until it says that this is all.

    Args:
        processes: those of this sweep; this one does not lead.
        config: as the leader has it.

    Raises:
        CNAError: the model cannot be loaded here.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # the leader hears the same remarks
    lm = load(config)
    if lm.lockstep:
        # Discovery is in step too, and what the leader found counts.
        find_interventions(config, lm, RunDirectory(config.output))
    worker, mode = Worker(lm), ""
    while (order := processes.hear())["do"] != "end":
        if order["do"] == "open":
            reply, mode = worker.open(_as_bytes(order["parcel"])), order["parcel"]["mode"]
            if "value" in reply:
                _look(lm, worker.settings)
        elif order["do"] == "prove":
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


def _look(lm: Steered, settings: Sequence[Setting]) -> None:
    """Compare the weights with those that the settings were made for, which takes all processes where they are cut.

    The model keeps what it finds out, so that the leader can write it into results files alone.
    """
    if lm.lockstep:
        for setting in settings:
            if setting.intervention is not None:
                lm.warnings_about(setting.intervention)


def _values(replies: Sequence[Message]) -> list[Any]:
    """What the others answered, by rank.

    Raises:
        CNAError: one of them could not; of the kind that it says.
    """
    for rank, reply in enumerate(replies, start=1):
        if "error" in reply:
            raise getattr(errors, reply["error"], RunError)(f"process {rank}: {reply['message']}")
    return [reply["value"] for reply in replies]


def _as_text(parcel: Message) -> Message:
    """A packed sweep with files as base64, which JSON can hold."""
    files = [{**one, "bytes": base64.b64encode(one["bytes"]).decode("ascii")} for one in parcel["interventions"]]
    return {**parcel, "interventions": files}


def _as_bytes(parcel: Message) -> Message:
    files = [{**one, "bytes": base64.b64decode(one["bytes"])} for one in parcel["interventions"]]
    return {**parcel, "interventions": files}


def _encoded(message: Message) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(message).encode("ascii")), dtype=torch.uint8)


def _decoded(data: torch.Tensor) -> Message:
    message: Message = json.loads(data.numpy().tobytes())
    return message
