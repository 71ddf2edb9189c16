"""The arithmetic of docs/capacity.md, and that the page shows what the script prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.capacity import GPUS, MODELS, command, gpus, memory, seconds, shape_of, suite, table
from lm_eval_cna.paper.memory import Memory


def test_the_suite_is_the_default_sweep() -> None:
    work = suite()
    assert work.cells == 1 + 6 + 6 + 2 * 19 and work.capability_cells == 13
    assert work.generated == 51 * 513 * 150
    assert work.read == 51 * 513 * 60 + 248 * 50
    assert work.mmlu == 13 * (57 * 600 + 14_042 * 100)


@pytest.mark.parametrize(
    ("total", "reserve", "needed"), [(71e9, 0, 1), (73e9, 0, 2), (150e9, 0, 4), (100e9, 0, 2), (100e9, 30e9, 4)]
)
def test_gpus_are_a_power_of_two_and_each_needs_what_is_not_cut(total: float, reserve: float, needed: int) -> None:
    assert gpus(Memory(int(total), 0, 0, int(reserve)), 80e9) == needed


def test_known_sizes() -> None:
    found = {name: gpus(memory(shape_of(name)), GPUS["80 GB"]) for name in MODELS}
    assert [*found.values()] == [1, 1, 1, 4, 16]
    shape = shape_of(MODELS[-1])
    layer = 2 * 16_384 * 16_384 + 2 * 16_384 * shape.kv_width + 3 * 16_384 * 53_248 + 2 * 16_384
    assert shape.parameters == shape.layers * layer + 2 * shape.vocabulary * 16_384 + 16_384


def test_time_is_work_over_rates() -> None:
    work = suite()
    one = seconds(work, generated=1000, read=10_000)
    assert one == pytest.approx((work.read + work.mmlu) / 10_000 + work.generated / 1000)
    assert seconds(work, generated=1000, read=10_000, processes=4) == pytest.approx(one / 4)
    assert seconds(work, generated=1000, read=10_000, whole_mmlu=False) < one


def test_commands_cut_what_does_not_fit() -> None:
    assert command(MODELS[0]).startswith("accelerate launch --multi_gpu --num_processes 8 -m lm_eval_cna sweep")
    assert command(MODELS[3]).startswith("torchrun --nproc-per-node 4") and "tp_plan=auto" in command(MODELS[3])
    larger, packed = command(MODELS[4]).splitlines()
    assert "--nproc-per-node 8" in larger and "load_in_4bit=True" in packed


def test_the_page_shows_what_the_script_prints(repo_root: Path) -> None:
    page = (repo_root / "docs" / "capacity.md").read_text(encoding="utf-8")
    assert table(MODELS, generated=None, read=None, processes=1) in page
    for name in MODELS:
        assert command(name) in page
