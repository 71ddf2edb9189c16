"""Holm's correction by hand and by statsmodels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from lm_eval_cna.statistics.holm import holm


def test_holm_by_hand() -> None:
    # Three tests: 0.01 * 3, then 0.02 * 2, then 0.03 * 1, but never less than the one before.
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert holm({"only": 0.02}) == {"only": 0.02}
    assert holm({}) == {}


@settings(max_examples=6, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_statsmodels(ps: list[float]) -> None:
    theirs = multipletests(ps, method="holm")[1]
    assert list(holm(dict(enumerate(ps))).values()) == pytest.approx(theirs.tolist(), abs=1e-12)
