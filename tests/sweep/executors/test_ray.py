"""A sweep on a Ray cluster is the plain sweep, whatever happens to the machines; needs the extra `ray`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lm_eval.tasks import TaskManager

ray = pytest.importorskip("ray", reason="the extra ray is not installed: pip install 'lm-eval-cna[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from lm_eval_cna.errors import ConfigError  # noqa: E402
from lm_eval_cna.results.directory import RunDirectory  # noqa: E402
from lm_eval_cna.sweep import runner  # noqa: E402
from lm_eval_cna.sweep.config import parse_config  # noqa: E402
from lm_eval_cna.sweep.executors import ray_workers  # noqa: E402
from lm_eval_cna.sweep.executors.ray import RayExecutor  # noqa: E402
from lm_eval_cna.sweep.many import run_sweeps  # noqa: E402
from tests.helpers.checkpoints import save_llama  # noqa: E402
from tests.sweep.test_runner import assert_equal_runs, stored, values  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_environment_report")]

# The plain way to a command line whose start takes lm-eval no seconds.
COMMAND = """
import os, signal, sys
import torch.utils.collect_env
torch.utils.collect_env.get_pretty_env_info = lambda: "a test"
from lm_eval.tasks import TaskManager
from lm_eval_cna.cli import main
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep import prepare, runner
manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
prepare.TaskManager = lambda **_: manager
if "INTERRUPT" in os.environ:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
    def interrupted(store, responses, put=runner.ResponseStore.put):
        put(store, responses)
        os.killpg(0, signal.SIGINT)  # as a terminal does: everything that was started from the command gets it
    runner.ResponseStore.put = interrupted
sys.exit(main(sys.argv[1:]))
"""

_OBJECTS = 80 * 2**20  # bytes; Ray's least is 75 MiB
_NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": _OBJECTS}
# A node whose processes are gone is known to be dead after three seconds instead of fifteen.
_HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
SMALL: dict[str, Any] = {"methods": ["cna"], "tasks": ["organism_refusal"]}
BATCH = 2
BATCHES = 18 + 1  # four prompts of nine cells by two, and what is scored


class Nodes(NamedTuple):
    """A cluster of two nodes with one core each; the second can be killed and another one added."""

    cluster: Cluster
    others: list[Any]

    def second(self) -> Any:
        if not self.others:
            self.others.append(self.cluster.add_node(**_NODE))
        return self.others[0]

    def workers(self) -> list[int]:
        """Process ids of the second node's workers that hold a model or are about to."""
        raylet = self.second().all_processes["raylet"][0].process.pid
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                command = (status.parent / "cmdline").read_text()
            except (OSError, ProcessLookupError):
                continue
            if parent == raylet and command.startswith("ray::Worker"):
                found.append(int(status.parent.name))
        return found

    def kill_second(self) -> None:
        """As if its power were cut: nothing on it says goodbye."""
        pids = self.workers()
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv("PYTHONPATH", os.pathsep.join([str(Path(runner.__file__).parents[2]), *sys.path]))
        made = Cluster(
            initialize_head=True, head_node_args={**_NODE, "include_dashboard": False, "_system_config": _HEALTH}
        )
        try:
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield Nodes(made, [])
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tiny")


def asked(model: Path, output: Path, **more: Any) -> Any:
    arguments = {"device": "cpu", "batch_size": BATCH, **more.pop("model_args", {})}
    return parse_config(values(model, output, model_args=arguments, harmless_kl=True, **more))


@pytest.fixture(scope="module")
def plain(model: Path, manager: TaskManager, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The same sweep in one process, which nobody disturbed."""
    return runner.run_sweep(asked(model, tmp_path_factory.mktemp("plain") / "run"), task_manager=manager)


class Ledger:
    """Which batches were handed out and which committed, in order."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, frozenset[tuple[int, str]]]] = []
        pack, put = ray_workers.pack_batch, runner.ResponseStore.put

        def packed(batch: Any) -> Any:
            self.events.append(("out", frozenset((cell, request.key) for cell, request in batch.rows)))
            return pack(batch)

        def kept(store: Any, responses: Any) -> None:
            put(store, responses)
            self.events.append(("kept", frozenset(responses)))

        patched.setattr(ray_workers, "pack_batch", packed)
        patched.setattr(runner.ResponseStore, "put", kept)

    def handed_out(self) -> Counter[frozenset[tuple[int, str]]]:
        return Counter(batch for event, batch in self.events if event == "out")

    def check(self, contexts: list[str]) -> None:
        """No batch was committed twice, and none was handed out once it was committed."""
        done: set[frozenset[tuple[str, str]]] = set()
        for event, batch in self.events:
            if event == "kept":
                assert batch not in done
                done.add(batch)
            else:
                assert frozenset((contexts[cell], key) for cell, key in batch) not in done


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    return Ledger(monkeypatch)


def contexts(directory: RunDirectory) -> list[str]:
    return [cell["context"] for cell in directory.manifest()["plan"]["cells"]]


def assert_the_same(ours: RunDirectory, plain: RunDirectory) -> None:
    assert stored(ours) == stored(plain)
    assert_equal_runs(ours, plain)
    assert ours.read_json("harmless_kl.json") == plain.read_json("harmless_kl.json")


def test_a_killed_node_changes_nothing(
    nodes: Nodes, model: Path, manager: TaskManager, plain: RunDirectory, tmp_path: Path, ledger: Ledger
) -> None:
    nodes.second()
    told: list[tuple[str, int, int, str]] = []
    kept_when_killed = 0

    def tell(stage: str, done: int, total: int, detail: str = "") -> None:
        nonlocal kept_when_killed
        told.append((stage, done, total, detail))
        if stage == "workers" and done == total == 2 and not kept_when_killed:
            for pid in nodes.workers():  # it holds batches now, and will not answer any more
                os.kill(pid, signal.SIGSTOP)
        kept = sum(event == "kept" for event, _ in ledger.events)
        if stage == "responses" and kept == BATCHES // 2:
            kept_when_killed = kept
            nodes.kill_second()

    directory = runner.run_sweep(
        asked(model, tmp_path / "run"), task_manager=manager, progress=tell, executor=RayExecutor()
    )
    handed_out = ledger.handed_out()
    again = [batch for batch, times in handed_out.items() if times > 1]
    print(
        f"node killed when {kept_when_killed} of {len(handed_out)} batches were committed; {len(again)} were "
        f"lost with it and handed out again, {sum(event == 'kept' for event, _ in ledger.events)} commits in all"
    )
    assert kept_when_killed and len(handed_out) == BATCHES and 1 <= len(again) <= 2
    ledger.check(contexts(directory))
    assert_the_same(directory, plain)
    workers = [step for step in told if step[0] == "workers"]
    assert ("workers", 2) in [step[:2] for step in workers] and workers[-1][1:3] == (1, 1)


def test_a_users_error_on_a_worker_is_one_clear_line(
    nodes: Nodes, model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval_cna.sweep.executors import ray as ray_executor

    pack = ray_executor.pack_sweep

    def without_the_model_there(prepared: Any) -> Any:
        parcel = pack(prepared)
        return {**parcel, "config": {**parcel["config"], "model": str(tmp_path / "not-on-that-machine")}}

    monkeypatch.setattr(ray_executor, "pack_sweep", without_the_model_there)
    with pytest.raises(ConfigError, match=r"^on \S+: cannot load the model: .*not-on-that-machine") as caught:
        runner.run_sweep(asked(model, tmp_path / "run"), task_manager=manager, executor=RayExecutor())
    assert "\n" not in str(caught.value) and "ray::" not in str(caught.value)


def test_many_models_run_together(
    nodes: Nodes, model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval_cna.sweep.prepare.TaskManager", lambda **_: manager)
    other = save_llama(tmp_path / "other", seed=1)
    nodes.second()
    told: list[str] = []
    found = run_sweeps(
        [asked(path, tmp_path / "together" / path.name, **SMALL) for path in (model, other)],
        executors=lambda stop: RayExecutor(stop=stop),
        progress=lambda stage, *_: told.append(stage),
    )
    # Both begin before either is evaluated, and each is what it is alone.
    assert max(map(told.index, ("tiny: responses", "other: responses"))) < min(
        map(told.index, ("tiny: cells", "other: cells"))
    )
    for path, run in zip((model, other), found, strict=True):
        alone = runner.run_sweep(asked(path, tmp_path / "alone" / path.name, **SMALL), task_manager=manager)
        assert_the_same(run, alone)


def test_an_interrupted_command_keeps_what_is_finished_and_goes_on(
    model: Path, manager: TaskManager, tmp_path: Path
) -> None:
    plain = runner.run_sweep(asked(model, tmp_path / "plain", **SMALL), task_manager=manager)
    run = RunDirectory(tmp_path / "run")
    settings = tmp_path / "sweep.yaml"
    settings.write_text(asked(model, run.path, **SMALL).model_dump_json(exclude_none=True), encoding="utf-8")
    one_worker = ["--cpus-per-task", str(os.cpu_count() or 1)]
    command = [sys.executable, "-c", COMMAND, "sweep", str(settings), "--ray", "local", *one_worker]
    first = process(command, INTERRUPT="1")
    assert first.returncode == 130 and first.stdout == "" and "Traceback" not in first.stderr, first.stderr
    assert "interrupted; what was finished is kept" in first.stderr.splitlines()[-1]
    before = stored(run)
    assert len(before) == BATCH and not run.has("summary.json")

    # With or without Ray, the same run goes on.
    runner.run_sweep(asked(model, run.path, **SMALL), task_manager=manager)
    assert before.items() <= stored(run).items()
    assert_the_same(run, plain)


def process(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(runner.__file__).parents[2]), **more}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment, start_new_session=True
    )
