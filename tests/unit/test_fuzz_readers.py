"""Every reader with good files made bad: the short version of `make fuzz`, without guidance by coverage."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.good import build
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, check, put

#: Of each reader; a report takes a tenth of a second.
EXAMPLES, REPORTS = 30, 5
SECONDS = 5.0  # `make fuzz` has one, on a machine that does nothing else


#: Module that opens files -> the readers that try it, or why none needs to.
OPENED = {
    "analysis/baseline.py": ("baseline",),
    "contrast/sources.py": ("contrast by reference",),
    "files/atomic.py": "opens them for the others",
    "files/jsonl.py": ("contrast",),
    "files/sqlite.py": ("response store", "judge's ledger"),
    "interventions/circuit.py": ("circuit", "circuit of experts", "reference circuit"),
    "interventions/stability.py": ("stability",),
    "interventions/vectors.py": ("vectors",),
    "judging/ledger.py": ("judge's ledger",),
    "judging/rubric.py": ("judge's template",),
    "models/vllm_engine/checkpoint.py": "reads what transformers reads, with its library",
    "organism/store.py": "holds every file against its hash, in the user's own cache",
    "paper/plan.py": ("prompts", "prompts as text"),
    "report/page.py": "only looks for its own name in figures and tables",
    "results/directory.py": ("manifest", "results", "summary", "verdicts", "divergences", "self-check", "evidence"),
    "results/responses.py": ("response store",),
    "sweep/config.py": ("sweep", "many sweeps"),
}


def test_every_module_that_opens_files_from_elsewhere_is_tried(repo_root: Path) -> None:
    package = repo_root / "lm_eval_cna"
    opens = re.compile(r"\b(read_whole|open_database|safe_open)\(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if opens.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(OPENED), "a new reader takes a line in tests/fuzz/targets.py and here"
    assert all(isinstance(by, str) or set(by) <= set(TARGETS) for by in OPENED.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("good")
    build(made)
    return made


@pytest.fixture
def good(name: str, folder: Path) -> bytes:
    return (folder / TARGETS[name].file).read_bytes()


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_file_is_read(name: str, folder: Path) -> None:
    assert check(TARGETS[name], folder / TARGETS[name].file) is None
    TARGETS[name].read(folder / TARGETS[name].file)


def _try(name: str, folder: Path, good: bytes, draw: random.Random) -> None:
    target = TARGETS[name]
    path = folder / target.file
    data = mutated(good, target.shape, draw)
    put(path, data)
    try:
        found = check(target, path, seconds=SECONDS)
        assert found is None, f"{found} of {data[:2_000]!r}"
    finally:
        put(path, good)


@pytest.mark.parametrize("name", [name for name in TARGETS if not name.startswith("report")])
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_a_bad_file_is_refused_or_means_something_small(
    name: str, folder: Path, good: bytes, draw: random.Random
) -> None:
    _try(name, folder, good, draw)


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("report")])
@settings(max_examples=REPORTS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_a_report_of_a_bad_run_too(name: str, folder: Path, good: bytes, draw: random.Random) -> None:
    _try(name, folder, good, draw)
