"""The null by control seed, and a quick run of the simulation that the benchmark does in full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import statistics_sweeps as simulation
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.statistics.null_distribution import against_controls, least_p, rank_p

EFFECTS = st.lists(st.integers(-100, 100).map(lambda points: points / 100), min_size=1, max_size=40)


def test_nineteen_controls_can_say_one_in_twenty() -> None:
    found = against_controls(-0.62, [0.0] * 16 + [0.01, 0.02, 0.03])
    assert found.p == pytest.approx(0.05)
    assert (found.seeds, found.low, found.high) == (19, 0.0, 0.03)
    assert found.mean == pytest.approx(0.06 / 19)
    assert found.testable and found.beyond and found.outside(-0.62)


def test_eighteen_cannot() -> None:
    found = against_controls(-0.62, [0.0] * 18)
    assert found.p == pytest.approx(1 / 19)
    assert found.outside(-0.62)
    assert not found.testable
    assert not found.beyond


def test_an_equally_far_control_counts_on_either_side() -> None:
    controls = [0.0] * 17 + [0.0, -0.2]
    assert against_controls(0.2, controls).p == pytest.approx(0.10)
    assert against_controls(0.2, controls, side="greater").p == pytest.approx(0.05)
    assert against_controls(0.2, controls, side="less").p == 1.0


def test_an_effect_like_all_controls_is_nothing() -> None:
    found = against_controls(0.0, [0.0] * 19)
    assert found.p == 1.0
    assert not found.outside(0.0)
    with pytest.raises(ConfigError, match="controls"):
        against_controls(0.1, [])


@given(st.integers(-100, 100).map(lambda points: points / 100), EFFECTS)
def test_p_is_between_its_least_and_one_and_does_not_care_for_sign_or_order(
    effect: float, controls: list[float]
) -> None:
    found = against_controls(effect, controls)
    assert least_p(len(controls)) <= found.p <= 1
    assert against_controls(-effect, [-control for control in controls]).p == found.p
    assert against_controls(effect, controls[::-1]).p == found.p
    if found.p == least_p(len(controls)):
        assert found.outside(effect)


@given(EFFECTS.filter(lambda values: len(values) > 1))
def test_among_exchangeable_effects_few_have_a_small_p(effects: list[float]) -> None:
    """The level holds, by counting: each effect in turn is the circuit's, the others its controls."""
    ps = [float(rank_p(one, effects[:at] + effects[at + 1 :])) for at, one in enumerate(effects)]
    for alpha in (0.05, 0.1, 0.5):
        assert np.mean(np.array(ps) <= alpha + 1e-12) <= alpha + 1e-12


def test_many_sweeps_at_once() -> None:
    rng = np.random.default_rng(0)
    effects, controls = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 19))
    together = rank_p(effects, controls)
    for at in np.ndindex(3, 4):
        assert together[at] == against_controls(float(effects[at]), controls[at].tolist()).p


def test_quick_simulation_of_false_alarms() -> None:
    """300 sweeps a point; the full run is `python -m benchmarks.statistics_simulation`."""
    rng = np.random.default_rng(7)
    for spread in (0.0, 0.05, 0.10):
        found = simulation.false_alarms(rng, sweeps=300, rate=0.2, spread=spread, prompts=100, controls=19)
        # Three standard errors of 300 sweeps at 5 % are 3.8 points.
        assert found.ours <= 0.05 + 0.038
        if spread == 0.10:
            assert found.pooled > 0.30


def test_the_simulations_other_interval_is_newcombes() -> None:
    # Armitage and Berry's culture media, as Newcombe (1998, Statistics in Medicine 17:2635) works them through, and the
    # data of Cavo et al. (2012) in Fagerland et al., Statistical Analysis of Contingency Tables (2017), chapter 8.
    for table, low, high in (((20, 12, 2, 16), 0.0562, 0.3292), ((59, 6, 16, 80), -0.1186, -0.0046)):
        found = simulation.newcombe(*table)
        assert [round(float(end), 4) for end in found] == [low, high]


def test_quick_simulation_of_coverage() -> None:
    rng = np.random.default_rng(8)
    for before, after, likeness in ((0.95, 0.30, 0.0), (0.5, 0.5, 0.5), (0.7, 0.2, 0.3)):
        found = simulation.coverage(rng, sweeps=300, before=before, after=after, likeness=likeness, prompts=100)
        assert abs(found.exact - 0.95) < 0.02
        assert abs(found.simulated - found.exact) < 0.04
