"""The public API: a short list, each name importable, and nothing heavy behind ``import lm_eval_cna``."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import lm_eval_cna


def test_the_list_is_short_and_sorted_out() -> None:
    assert len(lm_eval_cna.__all__) <= 12
    assert len(set(lm_eval_cna.__all__)) == len(lm_eval_cna.__all__)
    assert set(lm_eval_cna.__all__) <= set(dir(lm_eval_cna))
    # Names of the list that are imported on demand, and no others, stand in the table for it.
    assert set(lm_eval_cna._MODULES) == set(lm_eval_cna.__all__) - {"__version__"}


@pytest.mark.parametrize("name", lm_eval_cna.__all__)
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(lm_eval_cna, name)
    assert name == "__version__" or value.__doc__
    assert getattr(lm_eval_cna, name) is value


def test_the_version_is_the_installed_one() -> None:
    assert version("lm-eval-cna") == lm_eval_cna.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lm_eval_cna.no_such_name


def test_importing_the_package_is_light() -> None:
    code = "import sys; before = set(sys.modules); import lm_eval_cna; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lm_eval_cna"]
