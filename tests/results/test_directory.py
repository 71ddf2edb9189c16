"""A run directory: one process at a time, one plan, every file whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.errors import RunError
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import MANIFEST_SCHEMA, RunDirectory, find_runs
from lm_eval_cna.results.summary import CellSummary, Summary, read_summary, summarize

PLAN = {"model": "m", "random": 19, "multipliers": [0.0, 1.0], "circuit": None, "cells": ["c"] * 500, "weights": "w1"}

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom lm_eval_cna.results.directory import RunDirectory\n"
    "with RunDirectory(Path(sys.argv[1])).lock():\n"
    "    print('held', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def message(caught: pytest.ExceptionInfo[RunError]) -> str:
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


# Lock


def test_a_second_process_is_refused_until_the_first_is_gone(directory: RunDirectory) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is running a sweep") as caught, directory.lock():
            raise AssertionError("the lock was given twice")
        assert str(directory.path) in message(caught) and "--output" in message(caught)
    finally:
        holder.kill()  # as a crash would: nothing is cleaned up
        holder.wait()
    with directory.lock():
        pass


def test_the_lock_is_given_back_after_an_error(directory: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), directory.lock():
        raise ZeroDivisionError
    with directory.lock():
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/nothing/run")):
        with pytest.raises(RunError, match="cannot write") as caught, RunDirectory(path).lock():
            raise AssertionError("locked")
        assert str(path) in message(caught)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(directory: RunDirectory) -> None:
    directory.path.mkdir()
    directory.path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"), directory.lock():
        pass
    with pytest.raises(RunError, match="Permission denied"):
        directory.write_text("a.txt", "a")


# Writing


def test_files_are_written_below_folders_that_need_not_be_there(directory: RunDirectory) -> None:
    directory.write_json("cells/baseline/chat.json", {"text": "é\u2028 \U0001f600", "path": Path("x")})
    assert directory.has("cells/baseline/chat.json") and not directory.has("cells/baseline")
    assert directory.read_json("cells/baseline/chat.json") == {"text": "é\u2028 \U0001f600", "path": "x"}
    assert directory.results_name("baseline", "chat") == "cells/baseline/chat.json"


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    directory.write_text("summary.json", "old")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path if fails == "write_bytes" else os, fails, half if fails == "write_bytes" else refuse)
        with pytest.raises(RunError, match="cannot write") as caught:
            directory.write_text("summary.json", "new")
    assert "summary.json" in message(caught)
    assert ("No space left" if fails == "write_bytes" else "Read-only") in message(caught)
    assert [path.name for path in directory.path.iterdir()] == ["summary.json"]
    assert (directory.path / "summary.json").read_text(encoding="utf-8") == "old"


def test_an_interrupted_write_leaves_the_old_file(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.write_text("summary.json", "old")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            directory.write_text("summary.json", "new")
    assert [path.read_text(encoding="utf-8") for path in directory.path.iterdir()] == ["old"]


def test_a_file_in_the_way_of_a_folder(directory: RunDirectory) -> None:
    directory.write_text("cells", "a file")
    with pytest.raises(RunError, match="cannot write"):
        directory.write_json("cells/baseline/chat.json", {})


# Manifest


def test_the_same_plan_is_adopted_and_the_first_manifest_stays(directory: RunDirectory) -> None:
    directory.adopt({"plan": {**PLAN, "multipliers": (0.0, 1.0)}, "created": "monday", "command": ["a"]})
    before = (directory.path / "manifest.json").read_bytes()
    directory.adopt({"plan": {**PLAN, "multipliers": (0, 1)}, "created": "tuesday", "command": ["b"]})
    assert (directory.path / "manifest.json").read_bytes() == before
    manifest = directory.manifest()
    assert manifest["schema"] == MANIFEST_SCHEMA and manifest["created"] == "monday" and manifest["plan"] == PLAN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"random": 5}, ["another random", "got 5", "19"]),
        ({"circuit": "b.json"}, ["another circuit", "'b.json'", "None"]),
        ({"multipliers": [0.0]}, ["another multipliers", "[0.0]", "[0.0, 1.0]"]),
        ({"random": 5, "cells": ["d"] * 500, "weights": "w2"}, ["another random"]),  # the cause, not what follows
        ({"cells": ["d"] * 500}, ["another cells"]),
        ({"weights": "w2"}, ["another weights", "'w1'", "'w2'"]),
        ({"new": 1}, ["another new"]),
    ],
)
def test_another_plan_is_refused_by_the_field_that_differs(
    directory: RunDirectory, change: dict[str, Any], says: list[str]
) -> None:
    directory.adopt({"plan": PLAN})
    with pytest.raises(RunError) as caught:
        directory.adopt({"plan": {**PLAN, **change}})
    for part in [*says, str(directory.path), "choose another --output"]:
        assert part in message(caught)
    assert directory.manifest()["plan"] == PLAN


def test_a_field_that_is_gone_is_a_difference(directory: RunDirectory) -> None:
    directory.adopt({"plan": {**PLAN, "old": 1}})
    with pytest.raises(RunError, match="another old"):
        directory.adopt({"plan": PLAN})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"schema": "lm-eval-cna/manifest/1", "pl', "cannot read"),
        ("", "cannot read"),
        ("[" * 100_000, "cannot read"),
        ("[]", "does not hold an object"),
        ("{}", "another schema"),
        ('{"schema": "lm-eval-cna/manifest/2", "plan": {}}', "another schema"),
        ('{"schema": "lm-eval-cna/manifest/1", "plan": []}', "another schema"),
    ],
)
def test_a_damaged_manifest(directory: RunDirectory, text: str, says: str) -> None:
    directory.write_text("manifest.json", text)
    for use in (directory.manifest, lambda: directory.adopt({"plan": PLAN})):
        with pytest.raises(RunError, match=says) as caught:
            use()
        assert str(directory.path) in message(caught)
    assert (directory.path / "manifest.json").read_text(encoding="utf-8") == text  # kept, for the user to look at


def test_no_manifest(directory: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"no manifest\.json in .*finished `lm-eval-cna sweep`"):
        directory.manifest()


def test_runs_are_found_here_or_one_level_below(tmp_path: Path) -> None:
    for name in ("b", "a"):
        RunDirectory(tmp_path / name).adopt({"plan": PLAN})
    (tmp_path / "other").mkdir()
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "b"]
    assert [run.path for run in find_runs(tmp_path / "a")] == [tmp_path / "a"]
    for path in (tmp_path / "other", tmp_path / "nothing", tmp_path / "a" / "manifest.json"):
        with pytest.raises(RunError, match="no run directory") as caught:
            find_runs(path)
        assert repr(str(path)) in message(caught)


# Summary


def sample(number: int, text: str, filter_name: str = "none") -> dict[str, Any]:
    return {"doc_id": number, "resps": [[text]], "filter": filter_name}


def results(metrics: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"results": {"t": metrics}, "samples": {"t": samples}, "n-samples": {"t": {"original": 9, "effective": 2}}}


def test_a_summary_is_taken_from_lm_evals_own_files(directory: RunDirectory) -> None:
    steered = Cell("cna", 0.0)
    metrics = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 1, "f1_stderr,strict": "N/A"}
    directory.write_json("cells/baseline/chat.json", results(metrics, [sample(0, "same"), sample(1, "abcd")]))
    directory.write_json("cells/cna-m0/chat.json", results(metrics, [sample(1, "abcx"), sample(0, "same")]))
    summary = summarize(directory, [BASELINE, steered, Cell("random", 0.0, 0)], ["chat"])
    rows = {(row.cell, row.metric): row for row in summary.measured}
    assert {cell for cell, _ in rows} == {"baseline", "cna-m0"}  # a setting that is not asked of controls
    assert rows["cna-m0", "acc"] == CellSummary(
        cell="cna-m0", method="cna", multiplier=0.0, task="t", metric="acc", value=0.5, stderr=0.1, n=2
    )
    assert rows["cna-m0", "f1 (strict)"].value == 1.0 and rows["cna-m0", "f1 (strict)"].stderr is None
    assert rows["cna-m0", "changed_rate"].value == 0.5 and rows["cna-m0", "edit_similarity"].value == 0.875
    assert rows["baseline", "changed_rate"].value == 0.0 and rows["baseline", "edit_similarity"].value == 1.0
    assert summary.values("t", "changed_rate", method="cna", multiplier=0.0) == [0.5]


def test_a_document_counts_once_however_many_filters_a_task_has(directory: RunDirectory) -> None:
    for cell, text in (("baseline", "a"), ("cna-m0", "b")):
        samples = [sample(n, text, name) for name in ("strict", "flexible") for n in range(2)]
        directory.write_json(f"cells/{cell}/chat.json", results({}, samples))
    summary = summarize(directory, [BASELINE, Cell("cna", 0.0)], ["chat"])
    assert {(row.metric, row.n) for row in summary.measured} == {("changed_rate", 2), ("edit_similarity", 2)}


def test_likelihood_tasks_have_no_changed_texts(directory: RunDirectory) -> None:
    samples = [{"doc_id": 0, "resps": [[[-1.5, False]], [[-2.0, True]]]}]
    directory.write_json("cells/baseline/plain.json", results({"acc,none": 1.0}, samples))
    assert [row.metric for row in summarize(directory, [BASELINE], ["plain"]).measured] == ["acc"]


def test_a_missing_baseline_is_an_error(directory: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"no cells/baseline/chat\.json"):
        summarize(directory, [BASELINE], ["chat"])


@pytest.mark.parametrize("value", [0.1 + 0.2, float("inf"), float("nan")])
def test_a_summary_comes_back_as_it_was(directory: RunDirectory, value: float) -> None:
    row = CellSummary(cell="baseline", method="baseline", multiplier=1.0, task="t", metric="p", value=value, n=1)
    directory.write_text("summary.json", Summary(measured=(row,)).model_dump_json(by_alias=True))
    assert str(read_summary(directory).measured[0].value) == str(value)


@pytest.mark.parametrize("document", [{}, {"schema": "lm-eval-cna/summary/1", "measured": [{"cell": "x"}]}])
def test_a_damaged_summary(directory: RunDirectory, document: dict[str, Any]) -> None:
    directory.write_json("summary.json", document)
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        read_summary(directory)
    directory.write_text("summary.json", json.dumps(document)[:-1])
    with pytest.raises(RunError, match="cannot read"):
        read_summary(directory)
