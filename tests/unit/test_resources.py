"""Resources in a checkout and in a laid-out wheel; tests/integration/test_wheel.py installs a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lm_eval_cna import resources
from lm_eval_cna.files.jsonl import read_jsonl

FOLDERS: dict[Callable[[], Path], str] = {
    resources.tasks_dir: "tasks",
    resources.contrasts_dir: "contrasts",
    resources.circuits_dir: "circuits",
    resources.published_dir: "results/published",
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.__name__)
def test_a_checkout_has_them_at_its_root_and_a_wheel_inside_the_package(
    folder: Callable[[], Path], repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder() == repo_root / FOLDERS[folder]
    carried = tmp_path / "lm_eval_cna" / "_resources" / FOLDERS[folder]
    carried.mkdir(parents=True)
    # A folder of the same name beside the package belongs to somebody else and must not win.
    (tmp_path / FOLDERS[folder]).mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "lm_eval_cna")
    assert folder() == carried


def test_a_missing_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "lm_eval_cna")
    with pytest.raises(Exception, match=r"no folder 'tasks' .*reinstall"):
        resources.tasks_dir()


@pytest.mark.parametrize(
    ("name", "rows", "keys"),
    [
        ("jbb_refusal", 8, {"model", "baseline_refusal", "ablated_refusal", "relative_change", "source"}),
        ("cna_vs_caa", 8, {"model", "cna_refusal", "cna_quality", "caa_refusal", "caa_quality", "source"}),
        ("base_vs_instruct", 4, {"model", "variant", "baseline_refusal", "cna_refusal", "cna_quality", "source"}),
        ("claims", 16, {"name", "value", "meaning", "source"}),
    ],
)
def test_published_figures_are_whole(name: str, rows: int, keys: set[str]) -> None:
    read = [row for _, row in read_jsonl(resources.published_dir() / f"{name}.jsonl")]
    assert len(read) == rows
    assert all(set(row) == keys for row in read)


def test_published_changes_follow_from_their_rates() -> None:
    for _, row in read_jsonl(resources.published_dir() / "jbb_refusal.jsonl"):
        change = 100 * (row["ablated_refusal"] - row["baseline_refusal"]) / row["baseline_refusal"]
        assert change == pytest.approx(row["relative_change"], abs=0.06), row["model"]
