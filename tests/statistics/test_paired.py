"""Paired comparison: published worked examples, brute force, and what must hold for any counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.statistics.paired import compare, mcnemar_p, mcnemar_ps, sign_flip_p, tango, tango_limits


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 400))
    gained = draw(st.integers(0, n))
    return gained, draw(st.integers(0, n - gained)), n


# Both examples of Tango (1998); the worked example of Agresti and Min (2005, Statistics in Medicine 24:729); table II
# of Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33:2850); and the data of Cavo et al. (2012), which
# chapter 8 of Fagerland et al., Statistical Analysis of Contingency Tables (2017), works through.
@pytest.mark.parametrize(
    ("gained", "lost", "n", "level", "low", "high", "digits"),
    [
        (9, 3, 32, 0.95, -0.027, 0.390, 3),
        (0, 1, 44, 0.90, -0.096, 0.037, 3),
        (16, 8, 86, 0.95, -0.020, 0.207, 3),
        (1, 7, 21, 0.95, -0.517, -0.026, 3),
        (6, 16, 161, 0.95, -0.1240, -0.0054, 4),
    ],
)
def test_tango_published(gained: int, lost: int, n: int, level: float, low: float, high: float, digits: int) -> None:
    found = tango(gained, lost, n, level=level)
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)


# Fagerland et al. as above (0.070 and 0.052479), and Armitage and Berry's culture media, after Liddell (1983): 0.0129.
@pytest.mark.parametrize(("gained", "lost", "p"), [(1, 7, 0.0703125), (6, 16, 0.052479), (12, 2, 0.0129)])
def test_mcnemar_published(gained: int, lost: int, p: float) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(p, abs=5e-5)


@given(tables())
def test_mcnemar_is_statsmodels(table: tuple[int, int, int]) -> None:
    gained, lost, n = table
    theirs = mcnemar([[n - gained - lost, gained], [lost, 0]], exact=True).pvalue
    assert mcnemar_p(gained, lost) == pytest.approx(theirs, abs=1e-12)


def test_no_discordant_prompt() -> None:
    assert mcnemar_p(0, 0) == 1.0
    found = tango(0, 0, 100)
    # For d > 0 nothing speaks for lost prompts, so T^2 = n d / (1 - d), and the limit is Wilson's of 0 of n.
    assert found.low == pytest.approx(-found.high, abs=1e-12)
    z2 = stats.norm.ppf(0.975) ** 2
    assert found.high == pytest.approx(z2 / (100 + z2), abs=1e-9)


def test_all_prompts_changed() -> None:
    found = tango(100, 0, 100)
    assert found.high == 1.0
    assert 0.9 < found.low < 0.95
    assert mcnemar_p(100, 0) == pytest.approx(2 * 0.5**100)
    assert tango(1, 0, 1).high == 1.0


@given(tables())
def test_tango_holds_the_estimate_and_stays_inside(table: tuple[int, int, int]) -> None:
    gained, lost, n = table
    found = tango(gained, lost, n)
    assert -1 <= found.low <= (gained - lost) / n <= found.high <= 1
    assert found.low < found.high


@given(tables())
def test_tango_is_symmetric(table: tuple[int, int, int]) -> None:
    gained, lost, n = table
    here, there = tango(gained, lost, n), tango(lost, gained, n)
    assert here.low == pytest.approx(-there.high, abs=1e-9)
    assert here.high == pytest.approx(-there.low, abs=1e-9)
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained)


@given(tables())
def test_one_more_gained_prompt_moves_both_limits_up(table: tuple[int, int, int]) -> None:
    gained, lost, n = table
    if gained + lost < n:
        before, after = tango(gained, lost, n), tango(gained + 1, lost, n)
        assert after.low >= before.low - 1e-9
        assert after.high >= before.high - 1e-9


@given(tables(), st.floats(0.5, 0.98))
def test_a_higher_level_is_wider(table: tuple[int, int, int], level: float) -> None:
    narrow, wide = tango(*table, level=level), tango(*table, level=level + 0.015)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_tango_is_the_scan_of_the_likelihood(n: int) -> None:
    """The constrained estimate by scanning the likelihood, not by its formula; the limits by scanning differences."""
    z = stats.norm.ppf(0.975)
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            found = tango(gained, lost, n)
            for limit in (found.low, found.high):
                if abs(limit) < 1 - 1e-9:
                    assert abs(_score_by_scan(limit, gained, lost, n)) == pytest.approx(z, abs=2e-2)


def _score_by_scan(difference: float, gained: int, lost: int, n: int) -> float:
    q = np.linspace(max(0.0, -difference), (1 - difference) / 2, 20_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (
            _times_log(gained, q + difference)
            + _times_log(lost, q)
            + _times_log(n - gained - lost, 1 - 2 * q - difference)
        )
    best = q[np.argmax(likelihood)]
    variance = n * (2 * best + difference - difference**2)
    return float((gained - lost - n * difference) / np.sqrt(variance))


def _times_log(count: int, share: np.ndarray) -> np.ndarray:
    return count * np.log(np.maximum(share, 1e-300)) if count else np.zeros_like(share)


def test_arrays_are_the_scalars() -> None:
    gained, lost = np.array([[0, 3], [9, 20]]), np.array([[0, 1], [3, 0]])
    low, high = tango_limits(gained, lost, 20)
    ps = mcnemar_ps(gained, lost)
    for at in np.ndindex(2, 2):
        one = tango(int(gained[at]), int(lost[at]), 20)
        assert (low[at], high[at]) == (one.low, one.high)
        assert ps[at] == mcnemar_p(int(gained[at]), int(lost[at]))


@pytest.mark.parametrize("counts", [(3, 3, 5), (-1, 0, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="discordant"):
        tango(*counts)


def test_compare_pairs_common_documents_only() -> None:
    baseline = {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0, 4: 0.0}
    cell = {4: 1.0, 3: 0.0, 2: 0.0, 1: 0.0, 9: 1.0}
    found = compare(cell, baseline, "rate")
    assert found is not None
    assert (found.n, found.left_out, found.gained, found.lost) == (4, 2, 1, 2)
    assert found.effect == -0.25
    assert found.interval == tango(1, 2, 4)
    assert compare({7: 1.0}, {8: 1.0}, "rate") is None
    with pytest.raises(ConfigError, match="neither 0 nor 1"):
        compare({0: 0.5}, {0: 1.0}, "rate")


def test_compare_means() -> None:
    rng = np.random.default_rng(0)
    before = dict(enumerate(rng.normal(size=60)))
    same = compare(before, before, "mean")
    assert same is not None
    assert (same.effect, same.p) == (0.0, 1.0)
    moved = compare({key: value + 0.1 * key / 60 for key, value in before.items()}, before, "mean")
    assert moved is not None and moved.interval is not None
    assert moved.gained is None
    assert moved.effect in moved.interval
    assert moved.p < 0.001


def test_sign_flip_is_the_full_enumeration() -> None:
    differences = np.array([0.3, -0.1, 0.4, 0.25, 0.0, 0.6, -0.05, 0.2])
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(differences) == sign_flip_p(differences)
    assert sign_flip_p(-differences) == sign_flip_p(differences)
