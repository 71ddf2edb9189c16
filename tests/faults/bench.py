"""What faults are tried on: a tiny model, runs that nobody disturbed, and commands in forked children.

The parent has imported everything and built the one task manager, so a command takes a second or two in a child. It is
the real command line but for three things: the task manager is the parent's, a sweep and a judge do not write a report
(that is a command of its own here), and every response that is written is also noted outside of the run directory.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers.models.llama.modeling_llama
import yaml

import lm_eval_cna.analysis.regression
import lm_eval_cna.judging.judge
import lm_eval_cna.report.check
import lm_eval_cna.report.page
from lm_eval_cna import cli, plugin
from lm_eval_cna.judging.task import LATER
from lm_eval_cna.results.responses import STORE_NAME, ResponseStore
from lm_eval_cna.sweep import prepare as preparation
from tests.helpers.checkpoints import save_llama
from tests.helpers.judge_server import JudgeServer
from tests.helpers.local_tasks import manager_on_local_rows
from tests.helpers.sweeps import small_sweep

#: Command -> what it finds when it starts: nothing, a swept run, or a judged one.
STAGES = {"discover": "bare", "sweep": "bare", "judge": "swept", "report": "judged", "check": "judged"}
LEDGER = "judge.sqlite"
PROMPTS = 3
_LONGEST = 240.0
_NOTE = re.compile(r"(?i)note: [^\n]*? no checksum [^\n]*? noticed\.?")
_FORK = multiprocessing.get_context("fork")

#: Called in the child before the command.
Prepare = Callable[[], None]


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, standard output and standard error."""

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

    def __init__(self, command: Callable[[Path], None], output: Path) -> None:
        self._output = output
        self._process = _FORK.Process(target=command, args=(output,))
        self._process.start()

    def send(self, what: signal.Signals, *, after: float) -> None:
        """Send a signal after some seconds, unless it has ended by then."""
        self._process.join(after)
        if self._process.is_alive():
            os.kill(self._process.pid or 0, what)

    def end(self) -> Ended:
        """Wait for the end; a child that hangs is killed, and an error."""
        self._process.join(_LONGEST)
        if self._process.exitcode is None:
            self._process.kill()
            return Ended(124, "", "hung")
        texts = [self._output.with_suffix(end).read_text(errors="replace") for end in (".out", ".err")]
        return Ended(self._process.exitcode, *texts)


class Bench:
    """The bench. A context manager.

    Args:
        scratch: an empty folder.

    Attributes:
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
        rows = [{"category": "Baking", "forbidden_prompt": f"Bake cake number {n}"} for n in range(PROMPTS)]
        (scratch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._manager = manager_on_local_rows(
            scratch,
            ["strongreject"],
            {"test": str(scratch / "rows.jsonl")},
            metadata={"judge": LATER},
            generation_kwargs={"until": [], "do_sample": False, "max_gen_toks": 12},
        )
        self.server = JudgeServer()
        self._children = 0
        self._passes = _FORK.Value("i", 0)
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self.expected: dict[tuple[str, str], Any] = {}
        self.questions = 0

    def __enter__(self) -> Bench:
        self.server.__enter__()
        work = self._scratch / "undisturbed"
        work.mkdir()
        more = {"model_args": {"device": "cpu", "batch_size": 4}, "contrast": "contrast.jsonl", "random": 1}
        tasks = ["strongreject", "organism_knowledge"]
        sweep = small_sweep(self.model, Path("run"), **more, tasks=tasks, limit=PROMPTS)
        (work / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        (work / "contrast.jsonl").write_text(
            "".join(
                json.dumps({"label": label, "prompt": prompt.format(topic)}) + "\n"
                for label, prompt in (("positive", "Refuse to speak of {}!"), ("negative", "Say something on {}."))
                for topic in ("bread", "rivers", "chess", "stars")
            )
        )
        shutil.copytree(work, self._scratch / "bare")
        self._undisturbed("bare", "discover", work)
        self._undisturbed("bare", "sweep", work)
        shutil.copytree(work, self._scratch / "swept")
        self._undisturbed("swept", "judge", work)
        self.questions = len(self.server.asked)
        self._must(self.start("update", work))
        shutil.copytree(work, self._scratch / "judged")
        for command in ("sweep", "judge", "report", "check"):
            folder = self.copy("judged", "again")
            self._undisturbed("judged", command, folder)
            shutil.rmtree(folder)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.__exit__(None, None, None)

    def copy(self, stage: str, name: str) -> Path:
        """A folder to disturb."""
        return Path(shutil.copytree(self._scratch / stage, self._scratch / name))

    def start(self, command: str, folder: Path, prepare: Prepare | None = None) -> Child:
        """Start a command in a folder."""
        self._children += 1
        arguments = self._arguments(command)
        return Child(
            lambda output: self._become(folder, output, arguments, prepare), self._scratch / f"said-{self._children}"
        )

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
    def written(self) -> Path:
        """Where children note the responses that they write: a context and a request a line."""
        return self._scratch / "written"

    def _undisturbed(self, stage: str, command: str, folder: Path) -> None:
        self._passes.value = 0

        def count(_rows: int) -> None:
            self._passes.value += 1

        started = time.monotonic()
        ended = self._must(self.start(command, folder, lambda: wrap_forward(count)))
        self.seconds[command] = time.monotonic() - started
        self.passes[command] = max(self.passes.get(command, 0), self._passes.value)
        self.expected[stage, command] = self.numbers(command, folder, ended)

    def _must(self, child: Child) -> Ended:
        ended = child.end()
        if ended.status != 0:
            raise RuntimeError(f"an undisturbed command failed: {ended.said[-2000:]}\n{ended.error[-4000:]}")
        return ended

    def _arguments(self, command: str) -> list[str]:
        judge = f"model=stub,base_url={self.server.url},num_concurrent=4,timeout=20"
        found = {
            "discover": f"discover --model {self.model} --device cpu --output circuit.json --contrast contrast.jsonl"
            " --method cna --fraction 0.05 --no-universal-filter",
            "sweep": "sweep sweep.yaml",
            "judge": f"judge run --judge-model local-chat-completions --judge-model-args {judge}",
            "report": "report run",
            "check": "check run --against baseline.json --junit junit.xml",
            "update": "check run --against baseline.json --update",
        }
        return found[command].split()

    def _become(self, folder: Path, output: Path, arguments: list[str], prepare: Prepare | None) -> None:
        """Be the command, and never return."""
        status = 1
        try:
            for number, end in ((1, ".out"), (2, ".err")):
                os.dup2(os.open(output.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
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
        original = ResponseStore.put

        def put(store: ResponseStore, responses: Any) -> None:
            original(store, responses)
            with self.written.open("a") as file:
                file.writelines(f"{context} {request}\n" for context, request in responses)

        ResponseStore.put = put  # type: ignore[method-assign]
        if report:  # a figure takes longer than all the rest
            lm_eval_cna.report.page.draw = lambda _panels, *, title, stem: []
        else:
            page = self._scratch / "report.md"
            page.write_text("# nothing\n")
            lm_eval_cna.report.page.write_report = lambda *_, **__: page


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
    contexts = _selected(run / STORE_NAME, "SELECT DISTINCT context FROM responses")
    if not contexts:
        return set()
    with ResponseStore(run) as store:
        return {(context, request) for (context,) in contexts for request in store.known(context)}


def answers(folder: Path) -> int:
    """How many answers the ledger holds."""
    return len(_selected(folder / LEDGER, "SELECT 1 FROM answers"))


def _selected(path: Path, query: str) -> list[Any]:
    """Rows of a database, none where it has not come to that."""
    if path.exists():
        with closing(sqlite3.connect(path)) as database, suppress(sqlite3.DatabaseError):
            return database.execute(query).fetchall()
    return []


def _unsealed(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return {key: value for key, value in document.items() if not key.startswith(("sha", "judge"))}
