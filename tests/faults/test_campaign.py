"""The short version of the fault campaign: a round of every kind of fault. `make faults` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_fault_of_every_kind(tmp_path: Path) -> None:
    # A process of its own: the rounds fork, which a test process with threads should not.
    command = [sys.executable, "-m", "tests.faults", "--short", "--seed", "7", "--output", str(tmp_path / "found")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rounds"] == len(KINDS) == sum(found[verdict] for verdict in ("survived", "skipped"))
    assert found["skipped"] <= 1  # a folder that cannot be written takes root
