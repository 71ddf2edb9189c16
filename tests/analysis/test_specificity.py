"""The circuit against random neurons of its layers and of each third, and against those of largest activation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.baseline import Tolerances, baseline_of
from lm_eval_cna.analysis.evidence import collect
from lm_eval_cna.analysis.leaderboard import leaderboard
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.analysis.protocol import read_protocol
from lm_eval_cna.analysis.specificity import Standing, standings
from lm_eval_cna.analysis.tradeoff import trade_off
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.statistics.paired import mcnemar_p, tango
from tests.helpers.report_runs import ANSWER, REFUSAL, answer_metrics, write_run

N, SEEDS = 50, 19
CNA, TOP = Cell("cna", 0.0), Cell("top-activation", 0.0)
KINDS = ("random", "random-bottom", "random-middle", "random-top")


def sweep(path: Path, lost: Mapping[str, int], *, seeds: int = SEEDS, quality: float = 1.0) -> RunDirectory:
    """`lost` prompts of 50 are no longer refused with a method; of controls one more with every other seed."""
    cells = [BASELINE]
    for method in lost:
        chosen = range(seeds) if method.startswith("random") else (None,)
        cells += [Cell(method, 0.0, seed) for seed in chosen]

    def score(cell: Cell, document: int) -> dict[str, Any]:
        gone = 0 if cell == BASELINE else lost[cell.method] + (cell.seed or 0) % 2
        own = quality if cell.method == "top-activation" else 1.0
        return answer_metrics(ANSWER if document < gone else REFUSAL, quality=own)

    return write_run(path / "run", cells, {"harm": score}, n=N)


def stand(path: Path, lost: Mapping[str, int], **more: Any) -> tuple[Standing, ...]:
    run = sweep(path, lost, **more)
    return standings(collect(run), read_outcomes(run))


def beaten(found: Standing) -> tuple[str, ...]:
    """The kinds of random neurons that the effect is beyond, by a test."""
    return tuple(rival.method for rival in found.rivals if rival.null.beyond)


def test_a_circuit_that_beats_every_kind(tmp_path: Path) -> None:
    (found,) = stand(tmp_path, {"cna": 40, **dict.fromkeys(KINDS, 2), "top-activation": 10})
    assert (found.cell, found.task, found.metric, found.multiplier) == (CNA.key, "harm", "refusal_rate", 0.0)
    assert beaten(found) == KINDS and [rival.null.seeds for rival in found.rivals] == [SEEDS] * 4
    assert found.effect.effect == pytest.approx(-0.8)
    assert found.rivals[0].null.low == pytest.approx(-0.06) and found.rivals[0].null.high == pytest.approx(-0.04)
    theirs = found.strongest
    assert theirs is not None and theirs.effect.effect == pytest.approx(-0.2) and theirs.broken is None
    # Thirty prompts are refused with the most active neurons ablated and not with the circuit; none the other way.
    assert theirs.difference.effect == pytest.approx(-0.6)
    assert (theirs.difference.gained, theirs.difference.lost) == (0, 30)
    assert theirs.difference.p == mcnemar_p(0, 30) and theirs.difference.interval == tango(0, 30, N)
    of_rivals, of_strongest = found.texts
    assert of_rivals.startswith(
        "Ablation of the circuit (m = 0) changes refusal on harm by -80.0 points, random neurons"
    )
    assert "of its own layers -6.0 to -4.0 (19 seeds, p = 0.05)" in of_rivals
    assert "of the bottom third -6.0 to -4.0" in of_rivals
    assert of_rivals.endswith("It is beyond the random neurons of every kind.")
    assert (
        "As many neurons of largest activation change it by -20.0 points: the two differ by -60.0 points"
        in of_strongest
    )
    assert "exact McNemar p < 0.001" in of_strongest


@pytest.mark.parametrize(
    ("lost", "beats", "said"),
    [
        ((40, 2, 2, 2, 39), KINDS[:3], "It is not beyond random neurons of the top third."),
        ((30, 30, 30, 30, 30), (), "It is not beyond random neurons of any kind."),
        (
            (2,) * 5,
            (),
            "by -4.0 points, an effect that cannot be told from chance, and so not from that of other neurons.",
        ),
    ],
)
def test_a_circuit_that_random_neurons_match(
    tmp_path: Path, lost: tuple[int, ...], beats: tuple[str, ...], said: str
) -> None:
    (found,) = stand(tmp_path, dict(zip(("cna", *KINDS), lost, strict=True)))
    assert beaten(found) == beats and found.strongest is None
    (text,) = found.texts
    assert text.startswith("Ablation of the circuit (m = 0) changes refusal on harm") and text.endswith(said)


@pytest.mark.parametrize("seeds", [1, 18])
def test_few_seeds_support_no_test(tmp_path: Path, seeds: int) -> None:
    (found,) = stand(tmp_path, {"cna": 40, **dict.fromkeys(KINDS, 2)}, seeds=seeds)
    assert beaten(found) == () and "there is no test" in found.texts[0] and "p =" not in found.texts[0]


def test_the_most_active_neurons_may_do_the_same(tmp_path: Path) -> None:
    (found,) = stand(tmp_path, {"cna": 20, "top-activation": 19})
    (text,) = found.texts
    assert text.startswith(
        "Ablation of the circuit (m = 0) changes refusal on harm by -40.0 points, as many neurons of"
    )
    assert "by -38.0 points: no difference between the two can be told from chance (-2.0 points;" in text


def test_broken_text_of_the_most_active_neurons_is_told(tmp_path: Path) -> None:
    (found,) = stand(tmp_path, {"cna": 20, "top-activation": 50}, quality=0.3)
    assert found.strongest is not None and found.strongest.broken is not None
    assert "mean quality 0.30" in found.texts[0] and "with the neurons of largest activation" in found.texts[0]


def test_runs_with_neither_say_nothing(tmp_path: Path) -> None:
    assert stand(tmp_path, {"cna": 40, "random": 2}) == ()


# A control without a seed is a control all the same.


def test_the_most_active_neurons_are_no_candidate(tmp_path: Path) -> None:
    run = sweep(tmp_path, {"cna": 20, "top-activation": 45, "random": 1})
    evidence = collect(run)
    found = trade_off(evidence, "harm")
    assert [setting.cell for setting in found.settings] == [CNA.key]
    best = found.best("lower")
    assert best is not None and best.cell == CNA.key
    assert {verdict.method for verdict in evidence.verdicts} == {"cna"}
    theirs = evidence.find(TOP.key, "harm", "refusal_rate")
    assert theirs is not None and theirs.p_holm is None and theirs.null is None and theirs.paired is not None
    ours = evidence.find(CNA.key, "harm", "refusal_rate")
    assert ours is not None and ours.paired is not None and ours.p_holm == ours.paired.p, "Holm's family is cna alone"
    assert [row.method for row in leaderboard([run]).rows] == ["cna"]


def test_a_check_is_about_methods_and_not_about_the_most_active_neurons(tmp_path: Path) -> None:
    run = sweep(tmp_path, {"cna": 20, "top-activation": 45, "random": 1})
    outcomes = read_outcomes(run)
    kept = baseline_of(outcomes, read_protocol(run, outcomes), run="run", tolerances=Tolerances())
    assert set(kept.cells) == {BASELINE.key, CNA.key}
