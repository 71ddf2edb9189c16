"""A run again from its manifest: the same numbers to the letter, and what is said where they are not."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.errors import RunError
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep import runner
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.repeat import Difference, compare_runs, config_of
from tests.helpers.checkpoints import save_llama
from tests.helpers.sweeps import small_sweep


@pytest.fixture(scope="module", autouse=True)
def _one_task_manager() -> Iterator[None]:
    """The command builds one for itself, which takes as long as all sweeps here."""
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
        patched.setattr(runner, "run_sweep", functools.partial(runner.run_sweep, task_manager=manager))
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("repeat")
    values = small_sweep(save_llama(folder / "tiny"), folder / "run")
    return runner.run_sweep(parse_config(values), command=["typed"])


@pytest.fixture
def copy(first: RunDirectory, tmp_path: Path) -> RunDirectory:
    shutil.copytree(first.path, tmp_path / "copy")
    return RunDirectory(tmp_path / "copy")


def changed(run: RunDirectory, name: str, change: Any) -> None:
    document = run.read_json(name)
    change(document)
    run.write_json(name, document)


def test_the_command_gives_the_same_summary_to_the_letter(
    first: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["repeat", str(first.path / "manifest.json"), "--output", str(again)]) == 0
    assert (again / "summary.json").read_bytes() == (first.path / "summary.json").read_bytes()
    said = capsys.readouterr().out
    assert "numbers are the same, and summary.json to the letter" in said
    # A repeat that is there already is compared and not computed.
    assert main(["repeat", str(first.path), "--output", str(again)]) == 0


def test_a_given_circuit_comes_from_the_copy_that_was_used(copy: RunDirectory, tmp_path: Path) -> None:
    changed(copy, "manifest.json", lambda manifest: manifest["plan"].update(circuit="a", vectors="b"))
    config = config_of(copy, tmp_path / "again")
    assert config.circuit == str(copy.path / "circuit.json")
    assert config.vectors == str(copy.path / "vectors.safetensors")


def test_another_number_is_found_and_the_exit_status_says_so(
    first: RunDirectory, copy: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    row = copy.read_json("summary.json")["measured"][3]

    def worse(summary: dict[str, Any]) -> None:
        summary["measured"][3]["value"] += 0.25

    changed(copy, "summary.json", worse)
    found = compare_runs(first, copy)
    assert found.differences == (
        Difference(row["cell"], row["task"], row["metric"], row["value"], row["value"] + 0.25),
    )
    assert not found.same and not found.interventions and not found.circumstances
    assert main(["repeat", str(first.path), "--output", str(copy.path)]) == 0, "the repeat writes its summary anew"
    changed(copy, "summary.json", worse)
    changed(copy, "manifest.json", lambda manifest: manifest["machine"].update(torch="0.1"))
    capsys.readouterr()
    assert main(["repeat", str(copy.path), "--output", str(first.path)]) == 1
    said = capsys.readouterr().out
    assert f"1 of {found.compared} numbers differ" in said
    assert "0.1" in said and "torch" in said


def test_a_missing_number_is_a_difference_and_the_largest(first: RunDirectory, copy: RunDirectory) -> None:
    changed(copy, "summary.json", lambda summary: summary["measured"].pop(0))
    changed(copy, "summary.json", lambda summary: summary["measured"][5].update(value=7.0))
    found = compare_runs(first, copy)
    assert [difference.again for difference in found.differences] == [None, 7.0]


def test_another_circuit_is_named(first: RunDirectory, copy: RunDirectory) -> None:
    changed(copy, "manifest.json", lambda m: m["plan"]["interventions"].update({"circuit.json": "0" * 64}))
    found = compare_runs(first, copy)
    assert found.interventions == ("circuit.json",)
    assert not found.differences and not found.same


def test_what_a_judge_said_is_left_out(first: RunDirectory, copy: RunDirectory) -> None:
    """A repeat asks no judge, so its judged tasks lack some metrics and count evasions as compliance."""
    task = "organism_refusal"

    def judged(summary: dict[str, Any]) -> None:
        row = next(row for row in summary["measured"] if row["task"] == task)
        summary["measured"] += [{**row, "metric": name} for name in ("strongreject_score", "n_unscored")]

    changed(copy, "summary.json", judged)
    assert len(compare_runs(copy, first).differences) == 2
    changed(copy, "manifest.json", lambda manifest: manifest["plan"].update(judged=[task]))
    found = compare_runs(copy, first)
    assert found.same and found.left_out > 2


@pytest.mark.parametrize(
    ("manifest", "word"),
    [("{", "cannot read"), (json.dumps({"schema": "other"}), "another schema"), (None, "no manifest.json")],
)
def test_what_is_no_run_is_one_line(
    manifest: str | None, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    assert main(["repeat", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


def test_a_repeat_in_place_is_refused(first: RunDirectory) -> None:
    with pytest.raises(RunError, match="compares nothing"):
        config_of(first, first.path)
