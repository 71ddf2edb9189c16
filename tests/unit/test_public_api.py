"""The public API: a short list, each name importable, and nothing heavy behind ``import lm_eval_cna``."""

from __future__ import annotations

import doctest
import functools
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

import lm_eval_cna
from lm_eval_cna.resources import tasks_dir


def test_the_list_is_short_and_sorted_out() -> None:
    assert len(lm_eval_cna.__all__) <= 14
    assert len(set(lm_eval_cna.__all__)) == len(lm_eval_cna.__all__)
    assert set(lm_eval_cna.__all__) <= set(dir(lm_eval_cna))
    # Names of the list that are imported on demand, and no others, stand in the table for it.
    assert set(lm_eval_cna._MODULES) == set(lm_eval_cna.__all__) - {"__version__"}


@pytest.mark.parametrize("name", lm_eval_cna.__all__)
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(lm_eval_cna, name)
    assert name == "__version__" or value.__doc__
    assert getattr(lm_eval_cna, name) is value


@pytest.mark.parametrize("name", sorted({*lm_eval_cna.__all__} - {"__version__"}))
def test_the_example_of_each_name_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
    # A sweep looks through all of lm-eval's own tasks, which takes longer than the sweep of the example.
    ours = functools.partial(TaskManager, include_path=str(tasks_dir()), include_defaults=False)
    monkeypatch.setattr("lm_eval_cna.sweep.prepare.TaskManager", ours)
    value = getattr(lm_eval_cna, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(value, name)
    assert example.examples, f"{name} has no example in its docstring"
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


def test_the_version_is_the_installed_one() -> None:
    assert version("lm-eval-cna") == lm_eval_cna.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lm_eval_cna.no_such_name


def test_importing_the_package_is_light() -> None:
    code = "import sys; before = set(sys.modules); import lm_eval_cna; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lm_eval_cna"]
