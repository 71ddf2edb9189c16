"""Wilson's interval and the bootstrap of a mean: published examples, statsmodels, and a normal sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.statistics.rates import mean_interval, wilson


def test_wilson_published() -> None:
    # Newcombe (1998, Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)):
        found = wilson(successes, n)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    none = wilson(0, 20)
    assert none.low == 0.0
    assert round(none.high, 4) == 0.1611


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_is_statsmodels(counts: tuple[int, int]) -> None:
    successes, n = counts
    found = wilson(successes, n)
    assert 0 <= found.low <= successes / n <= found.high <= 1
    assert (found.low == 0.0) == (successes == 0) and (found.high == 1.0) == (successes == n), "exact at the ends"
    theirs = proportion_confint(successes, n, method="wilson")
    assert (found.low, found.high) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(counts: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        wilson(*counts)


def test_mean_interval() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, size=200).tolist()
    found = mean_interval(values)
    assert found is not None
    assert found == mean_interval(values)
    assert np.mean(values) in found
    half = stats.t.ppf(0.975, 199) * stats.sem(values)
    assert found.low == pytest.approx(np.mean(values) - half, abs=0.03)
    assert found.high == pytest.approx(np.mean(values) + half, abs=0.03)
    constant = mean_interval([0.5] * 9)
    assert constant is not None
    assert (constant.low, constant.high) == (0.5, 0.5)
    assert mean_interval([0.5]) is None
    two = mean_interval([0.0, 1.0])
    assert two is not None and np.isfinite([two.low, two.high]).all()
