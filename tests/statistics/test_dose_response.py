"""Page's trend test with ties."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from lm_eval_cna.statistics.dose_response import page_p, trend


def test_exact_p_is_the_full_enumeration() -> None:
    rows = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    places = np.arange(4) - 1.5
    orders = [sorted(set(_orders(row))) for row in rows]
    sums = np.array([sum(float(np.dot(row, places)) for row in chosen) for chosen in product(*orders)])
    observed = abs(float((rows @ places).sum()))
    assert page_p(rows) == pytest.approx(np.mean(np.abs(sums) >= observed - 1e-9))


def _orders(row: np.ndarray) -> list[tuple[float, ...]]:
    return list(permutations(row.tolist()))


def test_without_ties_it_is_scipys() -> None:
    values = np.random.default_rng(1).normal(size=(40, 5)) + np.arange(5) * 0.15
    theirs = stats.page_trend_test(values, method="asymptotic").pvalue
    assert theirs < 0.5
    assert page_p(values) == pytest.approx(2 * theirs, abs=0.01)


def test_with_ties_the_textbook_is_more_cautious() -> None:
    rows = (np.random.default_rng(1).random((100, 7)) < np.linspace(0.3, 0.45, 7)).astype(float)
    assert page_p(rows) < 2 * stats.page_trend_test(rows, method="asymptotic").pvalue


def test_a_clear_dose_response() -> None:
    doses = {m: {doc: float(doc < 50 * m) for doc in range(100)} for m in (0.0, 0.5, 1.0, 1.5, 2.0)}
    found = trend(doses)
    assert found is not None
    assert found.multipliers == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert found.means == pytest.approx((0.0, 0.25, 0.5, 0.75, 1.0))
    assert found.slope == pytest.approx(0.5)
    assert found.monotone and found.rising
    assert found.p < 1e-10


def test_no_change_is_no_trend() -> None:
    found = trend({m: dict.fromkeys(range(5), 1.0) for m in (0.0, 1.0, 2.0)})
    assert found is not None
    assert (found.p, found.slope, found.rising, found.monotone) == (1.0, 0.0, None, True)


def test_a_turn_is_seen_and_missing_documents_are_counted() -> None:
    found = trend({0.0: {1: 0.0, 2: 0.0}, 1.0: {1: 1.0, 2: 1.0, 3: 1.0}, 2.0: {2: 0.0, 1: 1.0}})
    assert found is not None
    assert (found.n, found.left_out, found.monotone) == (2, 1, False)
    assert trend({0.0: {1: 0.0}, 1.0: {1: 1.0}}) is None
    assert trend({0.0: {1: 0.0}, 1.0: {2: 1.0}, 2.0: {3: 1.0}}) is None


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(3, 7)), elements=st.sampled_from([0.0, 1.0])))
def test_page_does_not_care_which_way_or_what_is_counted(rows: np.ndarray) -> None:
    p = page_p(rows)
    assert 0 < p <= 1
    assert page_p(rows[:, ::-1]) == pytest.approx(p, abs=1e-9)
    assert page_p(1 - rows) == pytest.approx(p, abs=1e-9)


def test_drawn_p_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(2)
    rows = (rng.random((60, 5)) < np.linspace(0.3, 0.5, 5)).astype(float)
    # Any two values have the ranks of 0 and 1; not being 0 and 1, these are drawn.
    assert page_p(rows * 0.5) == pytest.approx(page_p(rows), abs=0.01)


def test_page_keeps_its_level() -> None:
    rng = np.random.default_rng(3)
    ps = np.array([page_p((rng.random((40, 5)) < 0.3).astype(float)) for _ in range(400)])
    assert np.mean(ps <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
