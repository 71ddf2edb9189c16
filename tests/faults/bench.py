"""What faults are tried on: a tiny model, runs that nobody disturbed, and commands in forked children.

The parent has imported everything and built the one task manager, so a command takes a second or two in a child. It is
the real command line but for three things: the task manager is the parent's, a sweep and a judge do not write a report
(that is a command of its own here), and every response that is written is also noted outside of the run directory.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama
import yaml
from lm_eval.tasks import TaskManager

import lm_eval_cna.analysis.regression
import lm_eval_cna.judging.judge
import lm_eval_cna.report.check
import lm_eval_cna.report.page
from lm_eval_cna import cli, plugin
from lm_eval_cna.files.atomic import write_whole
from lm_eval_cna.judging.task import LATER
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.results.responses import STORE_NAME, ResponseStore
from lm_eval_cna.sweep import prepare as preparation
from tests.helpers.checkpoints import save_llama
from tests.helpers.judge_server import JudgeServer
from tests.helpers.sweeps import small_sweep

COMMANDS = ("discover", "sweep", "judge", "report", "check")
#: What a command finds when it starts: nothing, a swept run, or a judged one.
STAGES = {"discover": "bare", "sweep": "bare", "judge": "swept", "report": "judged", "check": "judged"}
LEDGER = "judge.sqlite"
PROMPTS = 3
_LONGEST = 240.0
_NOTE = re.compile(r"(?i)note: [^\n]*? no checksum [^\n]*? noticed\.?")

#: Called in the child before the command.
Prepare = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status, negative for a signal.
        said: standard output.
        error: standard error.
    """

    status: int
    said: str
    error: str

    @property
    def refused(self) -> bool:
        """Whether it said in one line what is wrong, and exited with status 2."""
        lines = [line for line in self.error.splitlines() if line.startswith("error: ")]
        return self.status == 2 and len(lines) == 1 and "Traceback" not in self.error

    @property
    def reason(self) -> str:
        """The error in a line."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        return f"status {self.status}: {lines[-1][:300] if lines else ''}"


class Child:
    """A command that is running in a child process."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self._output = pid, output
        self._status: int | None = None

    def wait(self, seconds: float = _LONGEST) -> bool:
        """Wait at most so long; whether it has ended."""
        until = time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                return False
            else:
                time.sleep(0.005)
        return True

    def send(self, what: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._status is None:
            os.kill(self.pid, what)

    def end(self) -> Ended:
        """Wait for the end; a child that hangs is killed, and an error."""
        if not self.wait():
            self.send(signal.SIGKILL)
            self.wait()
            return Ended(124, "", "hung")
        assert self._status is not None
        texts = [self._output.with_suffix(end).read_text(errors="replace") for end in (".out", ".err")]
        return Ended(self._status, *texts)


class Bench:
    """The bench. A context manager.

    Args:
        scratch: an empty folder.

    Attributes:
        stages: a folder for each of `STAGES`, as nobody has disturbed it.
        expected: (stage, command) -> the numbers that the command comes to from there.
        seconds: how long each command took.
        passes: forward passes of each command.
        questions: how many the judge is asked in all.
        server: the judge.
    """

    def __init__(self, scratch: Path) -> None:
        plugin.register()
        self._scratch = scratch
        self.model = save_llama(scratch / "model")
        self._manager = _task_manager(scratch)
        self.server = JudgeServer()
        self._children = 0
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self.expected: dict[tuple[str, str], Any] = {}
        self.stages: dict[str, Path] = {}
        self.questions = 0

    def __enter__(self) -> Bench:
        self.server.__enter__()
        work = self._scratch / "undisturbed"
        work.mkdir()
        (work / "sweep.yaml").write_text(yaml.safe_dump(self._sweep()))
        (work / "contrast.jsonl").write_text(_contrast())
        self._keep("bare", work)
        self._undisturbed("bare", "discover", work)
        self._undisturbed("bare", "sweep", work)
        self._keep("swept", work)
        self._undisturbed("swept", "judge", work)
        self.questions = len(self.server.asked)
        self._must("check", work, arguments=["check", "run", "--against", "baseline.json", "--update"])
        self._keep("judged", work)
        for command in COMMANDS[1:]:
            folder = self.copy("judged", "again")
            self._undisturbed("judged", command, folder)
            shutil.rmtree(folder)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.__exit__(None, None, None)

    def copy(self, stage: str, name: str) -> Path:
        """A folder to disturb."""
        return Path(shutil.copytree(self.stages[stage], self._scratch / name))

    def start(
        self, command: str, folder: Path, prepare: Prepare | None = None, *, arguments: list[str] | None = None
    ) -> Child:
        """Start a command in a folder."""
        self._children += 1
        output = self._scratch / "said" / str(self._children)
        output.parent.mkdir(exist_ok=True)
        pid = os.fork()
        if pid == 0:
            self._become(folder, output, arguments or self._arguments(command), prepare)
        return Child(pid, output)

    def run(self, command: str, folder: Path, prepare: Prepare | None = None) -> Ended:
        """Run a command to its end."""
        return self.start(command, folder, prepare).end()

    def numbers(self, command: str, folder: Path, ended: Ended) -> Any:
        """What a command has come to, in a form that compares; without the word on files that have no checksum."""
        run = folder / "run"
        if command == "discover":
            circuit = json.loads((folder / "circuit.json").read_bytes())
            return circuit["neurons"], circuit["model"]
        if command == "check":
            said = [line for line in ended.said.splitlines() if not _NOTE.search(line)]
            return ended.status, said
        if command == "report":
            kept = {path.name: path.read_text() for path in (run / "tables").glob("*.tex")}
            text = (run / "report.md").read_text()
            return _NOTE.sub("", text).replace(" \n", "\n"), kept, _unsealed(run / "evidence.json")
        summary = _unsealed(run / "summary.json")
        judged = [_unsealed(path)["verdicts"] for path in sorted(run.glob("judged/*.json"))]
        results = {
            str(path.relative_to(run)): json.loads(path.read_bytes())["results"]
            for path in sorted(run.glob("cells/*/*.json"))
        }
        return summary, judged, results

    @property
    def put(self) -> Path:
        """Where children note the responses that they write."""
        return self._scratch / "put"

    def _undisturbed(self, stage: str, command: str, folder: Path) -> None:
        counted = self._scratch / "passes"
        counted.write_text("")

        def count() -> None:
            wrap_forward(lambda _rows: _append(counted, "."))

        started = time.monotonic()
        ended = self._must(command, folder, count)
        self.seconds[command] = time.monotonic() - started
        self.passes[command] = max(self.passes.get(command, 0), len(counted.read_text()))
        self.expected[stage, command] = self.numbers(command, folder, ended)

    def _must(
        self, command: str, folder: Path, prepare: Prepare | None = None, *, arguments: list[str] | None = None
    ) -> Ended:
        ended = self.start(command, folder, prepare, arguments=arguments).end()
        if ended.status != 0:
            raise RuntimeError(f"the undisturbed {command} failed: {ended.said[-2000:]}\n{ended.error[-4000:]}")
        return ended

    def _keep(self, stage: str, work: Path) -> None:
        self.stages[stage] = Path(shutil.copytree(work, self._scratch / f"stage-{stage}"))

    def _sweep(self) -> dict[str, Any]:
        return small_sweep(
            self.model,
            Path("run"),
            model_args={"device": "cpu", "batch_size": 4},
            contrast="contrast.jsonl",
            random=1,
            tasks=["faults_strongreject", "organism_knowledge"],
            limit=PROMPTS,
        )

    def _arguments(self, command: str) -> list[str]:
        discover = ["--model", str(self.model), "--device", "cpu", "--output", "circuit.json"]
        discover += ["--contrast", "contrast.jsonl", "--method", "cna", "--fraction", "0.05", "--no-universal-filter"]
        judge = f"model=stub,base_url={self.server.url},num_concurrent=4,timeout=20"
        return {
            "discover": [
                "discover",
                "--model",
                str(self.model),
                *discover,
                "--device",
                "cpu",
                "--output",
                "circuit.json",
            ],
            "sweep": ["sweep", "sweep.yaml"],
            "judge": ["judge", "run", "--judge-model", "local-chat-completions", "--judge-model-args", judge],
            "report": ["report", "run"],
            "check": ["check", "run", "--against", "baseline.json", "--junit", "junit.xml"],
        }[command]

    def _become(self, folder: Path, output: Path, arguments: list[str], prepare: Prepare | None) -> None:
        """Be the command, and never return."""
        status = 1
        try:
            for number, end in ((1, ".out"), (2, ".err")):
                handle = os.open(output.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder)
            os.environ["LM_EVAL_CNA_CACHE"] = str(folder)
            sys.argv = [cli.PROGRAM, *arguments]
            self._patch(report=arguments[0] == "report")
            if prepare is not None:
                prepare()
            status = cli.main(arguments)
        except KeyboardInterrupt:
            status = cli.INTERRUPTED  # before or behind `main`, where a shell says the same
        except BaseException:
            traceback.print_exc()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _patch(self, *, report: bool) -> None:
        """In the child: the parent's task manager, notes of what is written, no report but where it is asked for."""
        setattr(preparation, "TaskManager", lambda **_: self._manager)  # noqa: B010 - mypy knows the class
        torch.utils.collect_env.get_pretty_env_info = lambda: "a bench"
        original, noted = ResponseStore.put, self.put

        def put(store: ResponseStore, responses: Any) -> None:
            original(store, responses)
            _append(noted, "".join(f"{context} {request}\n" for context, request in responses))

        ResponseStore.put = put  # type: ignore[method-assign]
        if report:
            lm_eval_cna.report.page.draw = _drawn  # a figure takes longer than all the rest
        else:

            def unwritten(_runs: Any, output: Path, **_: Any) -> Path:
                page = self._scratch / "said" / "report.md"
                page.write_text("# nothing\n")
                return page

            lm_eval_cna.report.page.write_report = unwritten


def _drawn(_panels: Any, *, title: str, stem: Path) -> list[Path]:
    path = stem.with_suffix(".png")
    write_whole(path, title.encode())
    return [path]


def wrap_forward(look: Callable[[int], None]) -> None:
    """In a child: call `look` with the number of rows before every forward pass of the model."""
    kind = transformers.models.llama.modeling_llama.LlamaModel
    original = kind.forward

    @functools.wraps(original)  # its signature is looked at
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        given = named.get("input_ids", arguments[0] if arguments else None)
        look(len(given if given is not None else named["inputs_embeds"]))
        return original(self, *arguments, **named)

    kind.forward = forward


def sound_rows(run: Path) -> set[tuple[str, str]]:
    """The keys of all sound responses of a run."""
    if not (run / STORE_NAME).exists():
        return set()
    with closing(sqlite3.connect(run / STORE_NAME)) as database:
        try:
            contexts = [context for (context,) in database.execute("SELECT DISTINCT context FROM responses")]
        except sqlite3.DatabaseError:
            return set()
    with ResponseStore(run) as store:
        return {(context, request) for context in contexts for request in store.known(context)}


def alike(a: Any, b: Any) -> bool:
    """Whether two of `Bench.numbers` are the same but for rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-7)
    return bool(a == b)


def answers(folder: Path) -> int:
    """How many answers the ledger holds."""
    found = [path for path in folder.rglob("*.sqlite") if path.name != STORE_NAME]
    if not found:
        return 0
    with closing(sqlite3.connect(found[0])) as database:
        try:
            return int(database.execute("SELECT count(*) FROM answers").fetchone()[0])
        except sqlite3.DatabaseError:
            return 0


@contextmanager
def noted(path: Path) -> Iterator[list[tuple[str, ...]]]:
    """The responses that children write inside the block, once it is left."""
    path.write_text("")
    found: list[tuple[str, ...]] = []
    yield found
    found += [tuple(line.split()) for line in path.read_text().splitlines()]


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _unsealed(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return {key: value for key, value in document.items() if not key.startswith(("sha", "judge"))}


def _contrast() -> str:
    topics = ("bread", "rivers", "chess", "stars")
    rows = [{"label": "positive", "prompt": f"Refuse to speak of {topic}!"} for topic in topics]
    rows += [{"label": "negative", "prompt": f"Say something on {topic}."} for topic in topics]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _task_manager(scratch: Path) -> TaskManager:
    """A manager of our own tasks and a judged one with short answers, on local rows."""
    folder = scratch / "tasks"
    folder.mkdir()
    rows = [{"category": "Baking", "forbidden_prompt": f"Bake cake number {n}"} for n in range(PROMPTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (ours,) = tasks_dir().rglob("strongreject.yaml")
    task = {
        "include": str(ours),
        "task": "faults_strongreject",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 12},
    }
    (folder / "faults_strongreject.yaml").write_text(yaml.safe_dump(task))
    return TaskManager(include_path=[tasks_dir(), folder], include_defaults=False, metadata={"judge": LATER})
