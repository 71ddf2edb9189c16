"""Effects against their damage: the Pareto front and the best setting within a budget, on sweeps made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from lm_eval_cna.analysis.evidence import collect
from lm_eval_cna.analysis.tradeoff import TradeOff, TradeoffPoint, dominates, trade_off
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.results.cells import BASELINE, Cell
from tests.helpers.report_runs import ANSWER, REFUSAL, Score, answer_metrics, write_run

N = 100
#: Cell -> (prompts refused of 100, quality, capability answers right of 100, None where not asked).
Sweep = Mapping[Cell, tuple[int, float, int | None]]
CNA0, CNA5, CNA2 = Cell("cna", 0.0), Cell("cna", 0.5), Cell("cna", 2.0)
CAA0, CAA2 = Cell("caa", 0.0), Cell("caa", 2.0)


def weigh(folder: Path, sweep: Sweep, budget: DamageBudget | None = None) -> TradeOff:
    def refusal(cell: Cell, document: int) -> dict[str, object]:
        refused, quality, _ = sweep[cell]
        return answer_metrics(REFUSAL if document < refused else ANSWER, quality=quality)

    def capability(cell: Cell, document: int) -> dict[str, object] | None:
        right = sweep[cell][2]
        return None if right is None else {"acc": float(document < right)}

    tasks: dict[str, Score] = {"harm": refusal, "mmlu": capability}
    run = write_run(folder / "run", list(sweep), tasks, n=N)
    return trade_off(collect(run, budget=budget), "harm")


def of(found: TradeOff, cell: Cell) -> TradeoffPoint:
    (setting,) = [setting for setting in found.settings if setting.cell == cell.key]
    return setting


def test_effects_and_damage_of_every_setting(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (30, 0.98, 70), CAA0: (20, 0.7, 45)})
    cna, caa = of(found, CNA0), of(found, CAA0)
    assert (cna.effect, cna.quality, cna.loss) == (pytest.approx(-0.6), pytest.approx(0.98), 0.0)
    assert (caa.effect, caa.quality, caa.loss) == (pytest.approx(-0.7), pytest.approx(0.7), pytest.approx(0.25))
    assert caa.loss_task == "mmlu" and caa.loss_interval is not None
    assert caa.loss_interval.low < 0.25 < caa.loss_interval.high
    best = found.best("lower")
    assert best is not None and best.cell == CNA0.key, "the best within the budget, not the largest effect"
    assert cna.within and not caa.within and caa.broken is not None and "quality 0.70" in caa.broken
    assert found.capability and found.directions == ("lower",)


def test_both_are_on_the_front_where_more_effect_costs_more(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (30, 1.0, 70), CNA5: (60, 0.99, 70), CAA0: (20, 0.7, 45)})
    assert of(found, CNA0).front == of(found, CAA0).front == ("lower",)
    assert of(found, CNA5).front == (), "less effect for more damage"


def test_equal_settings_share_the_front(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (90, 1.0, None), CNA0: (30, 1.0, None), CNA5: (30, 1.0, None)})
    assert of(found, CNA0).front == of(found, CNA5).front == ("lower",)
    best = found.best("lower")
    assert best is not None and best.cell == CNA5.key, "of two alike the one nearer to the untouched model"


@pytest.mark.parametrize(("quality", "capability", "best"), [(0.95, 0.01, None), (0.9, 0.01, None), (0.9, 0.05, CNA0)])
def test_both_limits_of_the_budget_count(tmp_path: Path, quality: float, capability: float, best: Cell | None) -> None:
    budget = DamageBudget(quality=quality, capability=capability)
    found = weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (30, 0.92, 66)}, budget).best("lower")
    assert (None if found is None else found.cell) == (None if best is None else best.key)


def test_a_loss_at_the_limit_is_within_it(tmp_path: Path) -> None:
    assert of(weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (30, 1.0, 69)}), CNA0).within
    assert not of(weigh(tmp_path / "b", {BASELINE: (90, 1.0, 70), CNA0: (30, 1.0, 68)}), CNA0).within


def test_each_direction_has_its_best(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (50, 1.0, 70), CNA0: (10, 1.0, 70), CNA2: (80, 1.0, 70), CAA2: (95, 1.0, 30)})
    assert found.directions == ("lower", "raise")
    lower, higher = found.best("lower"), found.best("raise")
    assert lower is not None and higher is not None
    assert (lower.cell, higher.cell) == (CNA0.key, CNA2.key)
    assert found.best("raise", method="caa") is None


def test_without_an_effect_there_is_no_best(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (90, 1.0, 70)})
    assert found.directions == () and found.best("lower") is None and of(found, CNA0).front == ()


def test_capability_that_was_not_asked_is_not_held_against_a_setting(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (90, 1.0, None), CNA0: (30, 1.0, None)})
    assert not found.capability and of(found, CNA0).loss is None and of(found, CNA0).within


def test_controls_are_no_settings(tmp_path: Path) -> None:
    control = Cell("random", 0.0, 0)
    found = weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (30, 1.0, 70), control: (10, 1.0, 70)})
    assert [setting.cell for setting in found.settings] == [CNA0.key]


def test_text_that_is_broken_on_another_task_is_damage_here(tmp_path: Path) -> None:
    """Asked for harm it babbles; harmless answers and multiple choice are as they were."""

    def harm(cell: Cell, document: int) -> dict[str, object]:
        return answer_metrics(REFUSAL if cell == BASELINE else ANSWER, quality=0.4 if cell == CNA0 else 1.0)

    def harmless(cell: Cell, document: int) -> dict[str, object]:
        gone = {BASELINE: 0, CNA0: 60, CNA5: 30}[cell]
        return answer_metrics(ANSWER if document < gone else REFUSAL)

    tasks: dict[str, Score] = {"harm": harm, "harmless": harmless, "mmlu": lambda *_: {"acc": 1.0}}
    evidence = collect(write_run(tmp_path / "run", (BASELINE, CNA0, CNA5), tasks, n=N))
    found = trade_off(evidence, "harmless")
    babbling, sound = of(found, CNA0), of(found, CNA5)
    assert not babbling.within and babbling.broken_task == "harm" and "quality 0.40" in (babbling.broken or "")
    assert babbling.quality == 1.0 and babbling.loss == 0.0, "what was measured on this task stays as it is"
    assert sound.within and sound.broken_task is None
    best = found.best("lower")
    assert best is not None and best.cell == CNA5.key
    own = of(trade_off(evidence, "harm"), CNA0)
    assert own.broken_task == "harm" and not own.within


def test_nothing_dominates_itself(tmp_path: Path) -> None:
    found = weigh(tmp_path, {BASELINE: (90, 1.0, 70), CNA0: (30, 0.98, 66), CAA0: (20, 0.7, None)})
    assert not any(dominates(setting, setting, "lower") for setting in found.settings)
    assert dominates(of(found, CNA0), of(found, CNA0).model_copy(update={"quality": 0.5}), "lower")
    assert not dominates(of(found, CNA0), of(found, CAA0), "lower"), "it has less effect, for less damage"
