"""Examples in docstrings are true. Those of the public API, some of which write files, run in test_public_api.py."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import lm_eval_cna

PACKAGE = Path(lm_eval_cna.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", sorted({*WITH_EXAMPLES} - {*lm_eval_cna._MODULES.values()}))
def test_the_examples_of_a_module(name: str) -> None:
    assert not doctest.testmod(import_module(f"lm_eval_cna.{name}")).failed
