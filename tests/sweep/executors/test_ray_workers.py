"""Which workers are started, what is handed out again and when a sweep gives up, on a made-up cluster."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from lm_eval_cna.errors import CNAError, ConfigError, RunError
from lm_eval_cna.sweep.batches import Batch, Request
from lm_eval_cna.sweep.executors import ray_workers
from lm_eval_cna.sweep.executors.ray_workers import Needs, RayJob, RayWorkers

Script = Callable[["Actor", str, Any], Any]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class Actor:
    """Answers by the script; what it raises is what Ray raises for the promise."""

    def __init__(self, ray: FakeRay) -> None:
        self.ray, self.alive, self.number = ray, True, len(ray.actors)
        ray.actors.append(self)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: Promise(self, name, arguments[0] if arguments else None))


class Promise(NamedTuple):
    actor: Actor
    name: str
    argument: Any

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class FakeRay:
    """The part of Ray that the workers use, with everything back at once and in order."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, script: Script, *nodes: dict[str, float]) -> None:
        self.script = script
        self.actors: list[Actor] = []
        self.resources = list(nodes) or [{"CPU": 2.0}]
        self.options: dict[str, Any] = {}

    def cluster_resources(self) -> Counter[str]:
        return sum((Counter(node) for node in self.resources), Counter())

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.resources] + [{"Alive": False, "Resources": {}}]

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda kind: SimpleNamespace(remote=lambda: Actor(self))

    def put(self, value: Any) -> Any:
        return value

    def wait(self, promises: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return promises[:1], promises[1:]

    def get(self, promise: Any) -> Any:
        return self.script(promise.actor, promise.name, promise.argument)

    def kill(self, actor: Actor, no_restart: bool) -> None:
        assert no_restart
        actor.alive = False


def batch(number: int) -> Batch:
    return Batch("generate_until", ((0, Request("generate_until", (str(number), {}), f"key{number}", "t", number)),))


def run(monkeypatch: pytest.MonkeyPatch, script: Script, *nodes: dict[str, float], jobs: int = 5, **needs: Any) -> Any:
    fake = FakeRay(script, *nodes)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(ray_workers.time, "sleep", lambda _: None)
    told: list[tuple[int, int, str]] = []
    found = []
    with RayWorkers({}, Needs(**needs), lambda _stage, *step: told.append(step)) as workers:
        found += [
            (job.batch, value) for job, value in workers.work([RayJob(batch(n)) for n in range(jobs)] + [RayJob(None)])
        ]
    assert not any(actor.alive for actor in fake.actors)
    return fake, found, told


def honest(actor: Actor, name: str, argument: Any) -> Any:
    if name == "open":
        return {"value": f"node{actor.number % 2}"}
    return {"value": "KL" if name == "divergence" else argument["requests"][0][2]}


def test_every_job_is_done_once_and_all_workers_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, found, told = run(monkeypatch, honest)
    assert Counter(value for _, value in found) == Counter([*(f"key{n}" for n in range(5)), "KL"])
    assert all(value == (job.requests[0].key if job else "KL") for job, value in found)
    assert len(fake.actors) == 2 and (2, 2, "1 on node0, 1 on node1") in told
    assert fake.options == {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": 0, "max_task_retries": 0}


def test_workers_by_room_and_by_work(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"CPU": 5.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 8.0}
    fake, *_ = run(monkeypatch, honest, *nodes, jobs=40, cpus=2)
    assert (
        len(fake.actors) == 2 and fake.options["num_gpus"] == 1
    )  # a GPU where there is one; 2 cores only on the first
    fake, *_ = run(monkeypatch, honest, *nodes, jobs=40, gpus=0)
    assert len(fake.actors) == 6
    fake, *_ = run(monkeypatch, honest, *nodes, jobs=1, gpus=0.25)
    assert len(fake.actors) == 2, "two jobs with the KL"


def test_what_a_lost_worker_held_is_done_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: Counter[str] = Counter()

    def script(actor: Actor, name: str, argument: Any) -> Any:
        if actor.number == 0 and name != "open" and computed["key0"]:
            raise RayError("the node died\nand more")
        reply = honest(actor, name, argument)
        computed[reply["value"]] += 1
        return reply

    fake, found, _ = run(monkeypatch, script, {"CPU": 1.0})
    assert len(found) == 6 and max(computed[f"key{n}"] for n in range(5)) == 1
    assert len(fake.actors) == 2


def test_a_batch_that_takes_its_worker_along_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, name: str, argument: Any) -> Any:
        if name == "compute" and argument["requests"][0][2] == "key1":
            raise RayError("killed for memory")
        return honest(actor, name, argument)

    with pytest.raises(RunError, match=r"3 workers were lost over one batch: killed for memory; .*batch_size"):
        run(monkeypatch, script, {"CPU": 1.0})


def test_workers_lost_while_loading_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, name: str, argument: Any) -> Any:
        raise RayError("killed for memory")

    with pytest.raises(RunError, match="3 workers in a row were lost while they loaded the model: killed for memory"):
        run(monkeypatch, script)


def test_what_the_user_can_put_right_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, name: str, argument: Any) -> Any:
        return {"error": "ConfigError", "message": "cannot load the model", "node": "far"}

    with pytest.raises(ConfigError, match=r"^on far: cannot load the model$"):
        run(monkeypatch, script)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(actor: Actor, name: str, argument: Any) -> Any:
        raise RayTaskError("ZeroDivisionError in worker.py")

    with pytest.raises(RayTaskError):
        run(monkeypatch, script)


def test_a_cluster_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"no machine of the Ray cluster has 1 CPU and 2 GPU for a task; got .*'GPU': 1"
    ):
        run(monkeypatch, honest, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, gpus=2)


@pytest.mark.parametrize("needs", [{"cpus": 0}, {"cpus": -1}, {"gpus": -1}, {"cpus": float("nan")}])
def test_needs_are_positive(needs: dict[str, float]) -> None:
    with pytest.raises(CNAError, match="-per-task"):
        Needs(**needs)


def test_a_machine_that_comes_later_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_LOOK_AROUND", 0.0)

    def script(actor: Actor, name: str, argument: Any) -> Any:
        if name == "compute" and len(actor.ray.resources) == 1:
            actor.ray.resources.append({"CPU": 1.0})
        return honest(actor, name, argument)

    fake, found, _ = run(monkeypatch, script, {"CPU": 1.0}, jobs=8)
    assert len(fake.actors) == 2 and len(found) == 9


def test_a_cluster_that_is_gone_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_LOOK_AROUND", 0.0)
    monkeypatch.setattr(ray_workers, "_PATIENCE", 0.001)

    def script(actor: Actor, name: str, argument: Any) -> Any:
        if name == "compute":
            actor.ray.resources.clear()
            raise RayError("gone")
        return honest(actor, name, argument)

    with pytest.raises(RunError, match=r"no machine left .*the same command continues"):
        run(monkeypatch, script, {"CPU": 1.0})
