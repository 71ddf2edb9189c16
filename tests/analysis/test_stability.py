"""The stability record and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.stability import judge
from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.stability import Stability, read_stability
from lm_eval_cna.report.stability import FOLD_HEAD, fold_rows, pair_rows, stability_rows


def fold(**change: Any) -> dict[str, Any]:
    kept = {
        "positive": 4,
        "negative": 3,
        "prompts_sha256": "p",
        "circuit_sha256": "c",
        "of_whole": 0.8,
        "delta_seen": 2.0,
        "delta_left_out": 1.5,
        "kl": (1.0, 2.0, 3.0, 2.0),
        "kl_whole": (2.0, 2.0, 4.0, 2.0),
        "kl_random": (0.1, 0.0, 0.1, 0.2),
    }
    return {**kept, **change}


def record(**change: Any) -> Stability:
    kept: dict[str, Any] = {
        "circuit_sha256": "w",
        "size": 5,
        "contrast": "made-up",
        "contrast_sha256": "s",
        "seed": 0,
        "folds": (fold(), fold(delta_left_out=1.0, of_whole=0.6), fold(delta_left_out=2.0, of_whole=1.0)),
        "found_in": (3, 3, 2, 3, 0),
        "jaccard": (0.9, 0.7, 0.8),
        "jaccard_shuffled": (0.2, 0.3, 0.1),
        "jaccard_random": 0.01,
    }
    return Stability.model_validate({**kept, **change})


def test_the_figures_of_a_record() -> None:
    found = judge(record())
    assert (found.overlap.mean, found.overlap.low, found.overlap.high) == pytest.approx((0.8, 0.7, 0.9))
    assert found.shuffled is not None and found.shuffled.mean == pytest.approx(0.2)
    assert (found.of_whole.mean, found.in_all, found.by_chance) == (pytest.approx(0.8), 3, 0.01)
    moved = found.transferred
    assert (moved.mean, moved.low, moved.high) == pytest.approx((0.75, 0.5, 1.0))
    left = found.left_out
    assert left is not None and left.prompts == 12
    assert (left.own.mean, left.whole.mean, left.random.mean) == pytest.approx((2.0, 2.5, 0.1))
    assert left.kept == pytest.approx(0.8) and left.kept_interval is not None and left.own.interval is not None
    # Numerator and denominator of a resample are the same prompts: no ratio is outside those of single prompts.
    assert 0.5 <= left.kept_interval.low < 0.8 < left.kept_interval.high <= 1.0
    assert left.p < 0.001


def test_what_is_said_of_a_stable_circuit() -> None:
    same, held, moved = judge(record()).texts
    assert "Found without one of 3 folds of made-up, circuits of 5 neurons have a mean Jaccard index of 0.800" in same
    assert "at least 0.700 (circuits drawn at random 0.01, circuits found with shuffled labels 0.200)" in same
    assert "3 of the neurons of the whole circuit are in all 3." in same and "chance." not in same
    assert "is 75 % of what it is on those that it was found on (50 to 100 % over the folds)" in held
    assert "12 positive prompts that the circuit was found without by a KL of 2 nats" in moved
    assert "80 % (95 % interval" in moved and "random neurons of its layers by 0.1 (sign-flip" in moved


def test_a_circuit_that_is_the_same_in_every_fold_is_not_compared_with_itself() -> None:
    text = judge(record(folds=(fold(of_whole=1.0),) * 3)).texts[2]
    assert "it is the circuit that was found on all prompts, neuron for neuron; random neurons" in text


def test_a_circuit_no_more_stable_than_shuffled_labels_is_called_chance() -> None:
    same = judge(record(jaccard_shuffled=(0.9, 0.9, 0.7))).texts[0]
    assert "They are no more alike than circuits that set nothing apart" in same


def test_a_circuit_that_does_no_more_than_random_neurons() -> None:
    still = fold(kl=(0.0,) * 4, kl_whole=(0.0,) * 4, kl_random=(0.1, 0.0, 0.1, 0.0))
    found = judge(record(folds=(still,) * 3))
    assert found.left_out is not None and found.left_out.kept is None and found.left_out.kept_interval is None
    assert "random neurons of its layers by 0.05, which is no less." in found.texts[2]
    assert ("KL left out, of that of the circuit of all prompts", "nothing to take a share of") in stability_rows(found)


def test_prompts_without_a_finite_kl_are_counted_and_not_left_out() -> None:
    found = judge(record(folds=(fold(), fold(kl=(1.0, None, 2.0, 3.0)), fold())))
    assert found.left_out is None and found.not_finite == 1
    assert "not finite on 1 prompt that was left out" in found.texts[2]
    assert ("prompts whose KL is not finite", "1") in stability_rows(found)
    assert fold_rows(record(folds=(fold(), fold(kl=(1.0, None, 2.0, 3.0)), fold())))[1][6] == "not finite"


def test_without_shuffled_labels() -> None:
    found = judge(record(jaccard_shuffled=None))
    assert found.shuffled is None and "shuffled labels" not in found.texts[0]
    assert ("the same, labels shuffled", "too few prompts") in stability_rows(found)


def test_rows_of_folds_and_pairs() -> None:
    rows = fold_rows(record())
    assert all(len(row) == len(FOLD_HEAD) for row in rows)
    assert rows[0] == ("fold 1", "4 + 3", "0.800", "2", "1.5", "75.0 %", "2", "2.5", "0.1")
    head, pairs = pair_rows(record())
    assert head == ("Jaccard index", "fold 2", "fold 3")
    assert pairs == [("fold 1", "0.900", "0.700"), ("fold 2", "", "0.800")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"jaccard": (0.5,)}, "3 folds have 3 pairs"),
        ({"jaccard_shuffled": (0.5, 0.5)}, "3 folds have 3 pairs"),
        ({"found_in": (1,)}, "found_in needs"),
        ({"found_in": (4, 0, 0, 0, 0)}, "found_in needs"),
        ({"folds": (fold(),)}, "folds"),
        ({"folds": (fold(kl=(1.0,)), fold(), fold())}, "every positive prompt"),
        ({"folds": (fold(kl=(-1.0, 0.0, 0.0, 0.0)), fold(), fold())}, "folds.0.kl.0"),
        ({"jaccard_random": 1.5}, "jaccard_random"),
        ({"jaccard_random": float("nan")}, "jaccard_random"),
        ({"colour": "blue"}, "colour"),
        ({"schema": "lm-eval-cna/stability/2"}, "schema"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    import json

    document = json.loads(record().model_dump_json(by_alias=True))
    path = tmp_path / "c.stability.json"
    path.write_text(json.dumps({**document, **change}), encoding="utf-8")
    with pytest.raises(InterventionError, match=rf"c\.stability\.json is no stability record of schema .*{said}"):
        read_stability(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"schema": 1}'])
def test_what_is_no_record_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.stability.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InterventionError, match="is no stability record"):
        read_stability(path)


def test_a_record_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InterventionError, match="cannot write"):
        record().write(tmp_path / "file" / "c.stability.json")
