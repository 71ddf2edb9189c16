"""The power of the exact McNemar test."""

from __future__ import annotations

import pytest
from scipy import stats

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.statistics.paired import mcnemar_p
from lm_eval_cna.statistics.power import mcnemar_power, smallest_effect


@pytest.mark.parametrize(("forward", "opposite"), [(0.3, 0.05), (0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (0.2, 0.2)])
def test_power_is_the_sum_over_all_tables(forward: float, opposite: float) -> None:
    n, stay = 17, max(0.0, 1 - forward - opposite)
    total = sum(
        stats.multinomial.pmf([b, c, n - b - c], n, [forward, opposite, stay])
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if mcnemar_p(b, c) <= 0.05
    )
    assert mcnemar_power(n, forward, opposite) == pytest.approx(total, abs=1e-12)


def test_smallest_effect_has_the_power_and_less_has_not() -> None:
    found = smallest_effect(100, opposite=0.02)
    assert found.effect is not None
    assert mcnemar_power(100, found.effect + 0.02, 0.02) == pytest.approx(0.8, abs=1e-3)
    assert mcnemar_power(100, found.effect + 0.01, 0.02) < 0.8


def test_more_prompts_show_smaller_effects() -> None:
    effects = [smallest_effect(n).effect for n in (10, 50, 100, 300)]
    assert all(effect is not None for effect in effects)
    assert effects == sorted(effects, reverse=True)
    assert 0.07 < effects[2] < 0.09


def test_too_few_prompts_show_nothing() -> None:
    # Five prompts that all change have p = 2 / 32 > 0.05.
    assert smallest_effect(5).effect is None
    assert mcnemar_power(5, 1.0, 0.0) == 0.0
    assert mcnemar_power(6, 1.0, 0.0) == 1.0
    with pytest.raises(ConfigError):
        mcnemar_power(10, 0.8, 0.3)
