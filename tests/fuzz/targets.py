"""Every reader of a file that may come from elsewhere, with what a command does next with what it has read.

A reader gives a value or raises a CNAError of one line, in under a second. Anything else is a finding.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.models.openai_completions import LocalChatCompletion

from lm_eval_cna.analysis.baseline import make_baseline, read_baseline
from lm_eval_cna.analysis.evidence import read_evidence
from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.analysis.protocol import differences, read_protocol
from lm_eval_cna.analysis.regression import check_run
from lm_eval_cna.analysis.stability import judge as judge_stability
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.contrast.sources import read_spec
from lm_eval_cna.errors import CNAError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.stability import read_stability
from lm_eval_cna.judging.asking import Asker
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.judge import _judges, shared_judge
from lm_eval_cna.judging.judge_run import _responses
from lm_eval_cna.judging.ledger import Ledger
from lm_eval_cna.judging.rubric import make_rubric
from lm_eval_cna.paper.plan import read_prompts
from lm_eval_cna.report import check as checks
from lm_eval_cna.report.html import page
from lm_eval_cna.report.interventions import facts, overlap_rows, profile_rows
from lm_eval_cna.report.leaderboard import as_csv
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.samples import browser_data
from lm_eval_cna.report.sections import contents
from lm_eval_cna.report.stability import fold_rows, pair_rows, stability_rows
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.responses import ResponseStore
from lm_eval_cna.results.summary import read_summary
from lm_eval_cna.scoring.strongreject import FORMS, parse_verdict, verdict_metrics
from lm_eval_cna.sweep.config import parse_config, read_config
from lm_eval_cna.sweep.grid import plan_cells
from lm_eval_cna.sweep.many_config import holds_runs, parse_runs
from lm_eval_cna.sweep.prepare import self_check_result
from lm_eval_cna.sweep.repeat import compare_runs, config_of
from tests.fuzz.good import KEY

SECONDS = 1.0
_LONGEST_LINE = 3_000


class Finding(NamedTuple):
    """What a reader must not do: an exception, "slow", "memory" or "message", our line that it came from, and words."""

    kind: str
    where: str
    text: str


class Target(NamedTuple):
    """A reader: the good file that it reads, what kind of document that is for `tests.fuzz.mutate`, and a function.

    The function reads the file and does what comes next.
    """

    file: str
    shape: str
    read: Callable[[Path], Any]


def check(target: Target, path: Path, *, seconds: float = SECONDS) -> Finding | None:
    """Have a file read, and say what is wrong with how it went."""
    started = time.process_time()
    try:
        target.read(path)
    except CNAError as error:
        said = str(error)
        if "\n" in said or not 0 < len(said) <= _LONGEST_LINE:
            return Finding("message", _line(error), f"{len(said)} characters: {said[:200]!r}")
    except (Exception, RecursionError) as error:
        return Finding(type(error).__name__, _line(error), str(error)[:300])
    took = time.process_time() - started
    return Finding("slow", "", f"{took:.1f} s") if took > seconds else None


def _line(error: BaseException) -> str:
    """The last line of the package that an error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lm_eval_cna" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""


def put(path: Path, data: bytes) -> None:
    """Write a file for a reader, and remove what SQLite may have left beside an earlier one."""
    for beside in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))):
        beside.unlink(missing_ok=True)
    path.write_bytes(data)


def each(uses: Iterable[Callable[[], Any]]) -> None:
    """Several things that are done with one file; each may refuse it."""
    for use in uses:
        with suppress(CNAError):
            use()


def _intervention(path: Path) -> None:
    found = read_intervention(path)
    facts(found)
    if isinstance(found, Circuit):
        found.prefix(1)
        overlap_rows(found, found)
        profile_rows([found])


def _contrast(path: Path) -> None:
    found = load_contrast(path)
    assert found.sha256 and found.prompts


def _sweep(path: Path) -> None:
    """What a sweep or several do before they load anything: their plans as JSON, their cells, their judges."""
    values = read_config(path)
    for config in parse_runs(values, dict) if holds_runs(values) else [parse_config(values)]:
        json.dumps(config.model_dump(mode="json", exclude={"output"}))
        assert all(cell.key for cell in plan_cells(config))
        if config.judge is not None:
            json.dumps(config.judge.public())


def _judge(path: Path) -> None:
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return  # `--metadata` is read by lm-eval
    config = parse_judge(said)
    json.dumps(config.public())
    shared_judge(config)
    _judges.clear()


def _template(path: Path) -> None:
    make_rubric("strongreject", path).question("a prompt", "a response")


def _verdict(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace").replace("\ufffd", "\ud800")
    for form in FORMS.values():
        verdict_metrics(parse_verdict(text, "TAG", form), form)


class _Server:
    """lm-eval's reading of a chat server's reply, without the server."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def set_cache_hook(self, hook: Any) -> None:
        self._hook = hook

    def generate_until(self, instances: list[Any], disable_tqdm: bool) -> list[str]:
        texts: list[str] = LocalChatCompletion.parse_generations(json.loads(self._reply))
        for instance, text in zip(instances, texts, strict=False):
            self._hook.add_partial("generate_until", instance.args, text)
        return texts


def _reply(path: Path) -> None:
    asker = Asker(_Server(path.read_bytes()), {}, chat=False, retries=0, backoff=0.0)
    said: list[str] = []
    failures = asker.ask({"a": "question"}, lambda key, reply, attempts: said.append(reply))
    assert len(said) + len(failures) == 1 and "\n" not in "".join(failure.reason for failure in failures.values())
    for reply in said:
        parse_verdict(reply, "TAG", FORMS["strongreject"])


def _store(path: Path) -> None:
    with ResponseStore(path.parent) as store:
        known, found = store.known("context"), store.read("context")
        assert known == set(found)
        sum(response.tokens for response in found.values())
        store.put({("context", "c"): found.get("a") or found.get("b")} if found.keys() & {"a", "b"} else {})


def _ledger(path: Path) -> None:
    with Ledger(path) as ledger:
        for reply in ledger.replies([KEY, "other"]).values():
            parse_verdict(reply, "TAG", FORMS["strongreject"])
        assert len(ledger) >= 0
        said = parse_verdict("nothing", "TAG", FORMS["strongreject"])
        ledger.add("another", judge="j", rubric="r", reply="nothing", verdict=said, attempts=1)


def _stability(path: Path) -> None:
    found = read_stability(path)
    stability_rows(judge_stability(found))
    fold_rows(found)
    pair_rows(found)


def _run_of(path: Path) -> RunDirectory:
    return RunDirectory(next(parent for parent in path.parents if parent.name == "run"))


def _run(path: Path) -> None:
    """What check, judge, repeat and leaderboard read of a run."""
    run = _run_of(path)
    each(
        (
            lambda: differences(
                *[read_protocol(run, read_outcomes(run))] * 2, ("questions", "circuit"), names=("a", "b")
            ),
            lambda: make_baseline(run),
            lambda: list(_responses(run)),
            lambda: read_summary(run),
            lambda: read_evidence(run),
            lambda: config_of(run, run.path.parent / "again"),
            lambda: compare_runs(run, run),
            lambda: self_check_result(run, "circuit.json"),
            lambda: run.check_plan({"model": "another"}),
        )
    )


def _report(path: Path) -> None:
    """What a report and a leaderboard do with a run, figures aside."""
    run = _run_of(path)
    each((lambda: as_csv(leaderboard([run, run])),))
    runs = read_runs([run], DamageBudget())
    page(contents(runs), browser_data(runs))


def _baseline(path: Path) -> None:
    """What `check` does with a baseline."""
    found = check_run(RunDirectory(path.parent / "run"), read_baseline(path))
    checks.rows(found)


CELL = "run/cells/cna-m0/plain.json"
TARGETS: dict[str, Target] = {
    "circuit": Target("circuit.json", "json", _intervention),
    "circuit of experts": Target("experts.json", "json", _intervention),
    "reference circuit": Target("reference.json", "json", _intervention),
    "vectors": Target("vectors.safetensors", "safetensors", _intervention),
    "stability": Target("circuit.stability.json", "json", _stability),
    "contrast": Target("contrast.jsonl", "lines", _contrast),
    "contrast by reference": Target("contrast.yaml", "yaml", read_spec),
    "sweep": Target("sweep.yaml", "yaml", _sweep),
    "many sweeps": Target("leaderboard.yaml", "yaml", _sweep),
    "manifest": Target("run/manifest.json", "json", _run),
    "results": Target(CELL, "json", _run),
    "results of the baseline": Target("run/cells/baseline/plain.json", "json", _run),
    "summary": Target("run/summary.json", "json", _run),
    "verdicts": Target(f"run/judged/{'f' * 12}.json", "json", _run),
    "divergences": Target("run/harmless_kl.json", "json", _run),
    "self-check": Target("run/self_check.json", "json", _run),
    "evidence": Target("run/evidence.json", "json", _run),
    "a run's circuit": Target("run/circuit.json", "json", _run),
    "report of a manifest": Target("run/manifest.json", "json", _report),
    "report of results": Target(CELL, "json", _report),
    "report of a summary": Target("run/summary.json", "json", _report),
    "report of a self-check": Target("run/self_check.json", "json", _report),
    "baseline": Target("baseline.json", "json", _baseline),
    "prompts": Target("prompts.jsonl", "lines", read_prompts),
    "prompts as text": Target("prompts.txt", "text", read_prompts),
    "response store": Target("store/responses.sqlite", "sqlite", _store),
    "judge": Target("judge.json", "json", _judge),
    "judge's template": Target("template.txt", "text", _template),
    "judge's ledger": Target("ledger.sqlite", "sqlite", _ledger),
    "judge's reply": Target("reply.json", "json", _reply),
    "judge's verdict": Target("verdict.txt", "text", _verdict),
}
