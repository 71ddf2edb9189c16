"""The effect over the circuit's size: how few neurons have half of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.evidence import collect
from lm_eval_cna.analysis.sparsity import SizeCurve, size_curves
from lm_eval_cna.results.cells import BASELINE, Cell
from tests.helpers.report_runs import plain_refusal, write_run

N = 100


def curves(
    path: Path, lost: Mapping[int, int], *, controls: int = 0, drawn: int = 1, multipliers: tuple[float, ...] = (0.0,)
) -> tuple[SizeCurve, ...]:
    """With a circuit of a size, `lost` of 100 prompts are no longer refused; of random neurons `drawn` or one more."""
    cells = [BASELINE, *(Cell("cna", m, None, size) for size in lost for m in multipliers)]
    cells += [Cell("random", 0.0, seed, size) for seed in range(controls) for size in lost]

    def refused(cell: Cell, document: int) -> bool:
        if cell.method == "random":
            return document >= drawn + (cell.seed or 0) % 2
        return cell == BASELINE or cell.multiplier == 2.0 or document >= lost[cell.size or 0]

    run = write_run(path / "run", cells, {"harm": plain_refusal(refused)}, n=N)
    return size_curves(collect(run))


def test_half_and_nine_tenths_of_the_effect(tmp_path: Path) -> None:
    (found,) = curves(tmp_path, {100: 90, 25: 40, 50: 50, 75: 85}, controls=19)
    assert [one.size for one in found.sizes] == [25, 50, 75, 100]
    assert (found.half, found.most, found.least_beyond) == (50, 75, 25)
    assert found.text.startswith(
        "The largest circuit, 100 neurons, lowers refusal on harm at m = 0 by 90.0 points; half"
    )
    assert "half of that is reached with 50 neurons (-50.0 points, 95 % interval -" in found.text
    assert found.text.endswith("nine tenths with 75. It is beyond as many random neurons from 25 neurons on.")


@pytest.mark.parametrize(
    ("lost", "more", "half", "most", "said"),
    [
        ({5: 60, 10: 20, 20: 50, 40: 80}, {}, 20, 40, "nine tenths with 40."),  # one lucky size does not count
        ({5: 80, 10: 80}, {}, 5, 5, "with 5 neurons, the smallest size that was run (-80.0 points"),
        ({5: 80, 10: 80}, {}, 5, 5, "which also reach nine tenths."),
        ({5: 10, 10: 80}, {}, 10, 10, "no smaller size that was run keeps half of that."),
        ({5: 2, 10: 1}, {"controls": 19}, None, None, "so there is nothing to divide by size."),
        ({5: 30, 10: 60}, {"controls": 19, "drawn": 60}, 5, 10, "It is not beyond random neurons there."),
    ],
)
def test_the_least_size(
    tmp_path: Path, lost: dict[int, int], more: dict[str, Any], half: int | None, most: int | None, said: str
) -> None:
    (found,) = curves(tmp_path, lost, **more)
    assert (found.half, found.most, found.least_beyond) == (half, most, None) and said in found.text
    assert ("random" in found.text) == (half is not None and "controls" in more), "nothing is said without a test"


def test_only_the_multipliers_of_the_controls(tmp_path: Path) -> None:
    lost = {5: 30, 10: 60}
    assert [one.multiplier for one in curves(tmp_path / "a", lost, controls=2, multipliers=(0.0, 2.0))] == [0.0]
    assert [one.multiplier for one in curves(tmp_path / "b", lost, multipliers=(0.0, 2.0))] == [0.0, 2.0]


@pytest.mark.parametrize("lost", [{10: 60}, {}])
def test_one_size_is_no_curve(tmp_path: Path, lost: dict[int, Any]) -> None:
    assert curves(tmp_path, lost) == ()
