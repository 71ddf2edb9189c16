"""The grid: one baseline, controls at the ends, names that are unique and safe in a path."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_cna.interventions.methods import CONTROLS, LOCAL, METHODS
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.sweep.config import SweepConfig, parse_config
from lm_eval_cna.sweep.grid import plan_cells


def config(**values: Any) -> SweepConfig:
    return parse_config({"model": "m", "output": "out", **values})


configs = st.builds(
    config,
    methods=st.lists(st.sampled_from(list(METHODS)), min_size=1, max_size=6),
    multipliers=st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-9]), min_size=1, max_size=6),
    top_k=st.lists(st.integers(1, 1000), max_size=3),
    random=st.integers(0, 3),
    control_multipliers=st.none() | st.lists(st.sampled_from([0.0, 1.0, 2.0]), max_size=3),
)


def test_the_default_sweep() -> None:
    cells = plan_cells(config())
    assert cells[0] == BASELINE and cells.count(BASELINE) == 1
    assert [cell.key for cell in cells[1:7]] == ["cna-m0", "cna-m0.25", "cna-m0.5", "cna-m0.75", "cna-m1.5", "cna-m2"]
    controls = [cell for cell in cells if cell.is_control]
    assert {(cell.seed, cell.multiplier) for cell in controls} == {(s, m) for s in range(19) for m in (0.0, 2.0)}
    assert len(cells) == 1 + 6 + 6 + 38


def test_other_controls_have_other_seeds() -> None:
    cells = plan_cells(config(random=3, first_seed=100))
    assert {cell.seed for cell in cells if cell.is_control} == {100, 101, 102}


def test_a_sweep_of_the_baseline_alone() -> None:
    assert plan_cells(config(multipliers=[1])) == [BASELINE]


def test_sizes_are_of_circuits_and_of_their_controls_only() -> None:
    cells = plan_cells(config(methods=list(METHODS), top_k=[5, 3], multipliers=[0], random=1))
    assert [(cell.method, cell.size) for cell in cells[1:]] == [
        ("cna", 3),
        ("cna", 5),
        ("caa", None),
        ("caa-residual", None),
        ("top-activation", 3),
        ("top-activation", 5),
        *((control, size) for control in ("random", *LOCAL) for size in (3, 5)),
        ("random-vectors", None),
    ]


@given(configs)
def test_what_holds_for_every_sweep(sweep: SweepConfig) -> None:
    cells = plan_cells(sweep)
    assert cells[0] == BASELINE
    assert [cell for cell in cells if cell.multiplier == 1.0] == [BASELINE]
    assert len(set(cells)) == len(cells)
    keys = [cell.key for cell in cells]
    assert len({key.lower() for key in keys}) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", key) and ".." not in key and len(key) < 100 for key in keys)
    for cell in cells[1:]:
        assert cell.is_control == (cell.method in CONTROLS) == (cell.seed is not None)
        assert cell.multiplier in (sweep.controlled_at if cell.is_control else sweep.multipliers)
        assert (cell.size is not None) == bool(
            sweep.top_k and cell.method not in ("caa", "caa-residual", "random-vectors")
        )
        if not cell.is_control:
            assert cell.method in sweep.compared
    if "cna" in sweep.compared:
        assert {cell.multiplier for cell in cells if cell.method == "cna"} == set(sweep.multipliers) - {1.0}


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (BASELINE, "baseline"),
        (Cell("cna", 0.5, size=200), "cna-k200-m0.5"),
        (Cell("random", 0.0, seed=3), "random-s3-m0"),
        (Cell("random", 2.0, seed=11, size=5), "random-s11-k5-m2"),
        (Cell("random-top", 2.0, seed=11, size=5), "random-top-s11-k5-m2"),
        (Cell("top-activation", 0.0), "top-activation-m0"),
        (Cell("caa", -1.0), "caa-m-1"),
        (Cell("caa", 1e20), "caa-m1e_20"),
        (Cell("cna", 100000.0), "cna-m100000"),
    ],
)
def test_keys(cell: Cell, key: str) -> None:
    assert cell.key == key


def test_close_multipliers_have_files_of_their_own() -> None:
    assert Cell("cna", 0.1234567).key != Cell("cna", 0.1234568).key
    assert Cell("cna", 1.0000001).key not in ("cna-m1", "baseline")
