"""Every reader with good files made bad: the short version of `make fuzz`, without guidance by coverage."""

from __future__ import annotations

import random
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
