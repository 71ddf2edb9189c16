"""Reading and writing intervention files of either kind: what is missing, too large, unreachable or unwritable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.transformer.neurons import Neuron


def circuit(*neurons: Neuron) -> Circuit:
    return Circuit(method="cna", name="refusal", neurons=neurons)


def refusal(path: str | Path) -> str:
    """The message of a refused file, which must be one line."""
    with pytest.raises(InterventionError) as caught:
        read_intervention(path)
    message = str(caught.value)
    assert message and "\n" not in message and "\r" not in message
    return message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nothing.json")
    assert "no such intervention file" in message and "nothing.json" in message and "discover" in message
    assert "no such intervention file" in refusal(tmp_path)
    assert "\n" not in refusal(tmp_path / "new\nline.json")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_cna.interventions.circuit._MAX_BYTES", 2**20)
    path = tmp_path / "c.json"
    path.write_bytes(b" " * (2**20 + 1))
    message = refusal(path)
    assert "too large" in message and "1 MiB" in message


def test_a_hub_that_is_not_reachable() -> None:
    assert "cannot fetch hf://owner/repo/circuit.json@main" in refusal("hf://owner/repo/circuit.json@main")


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "circuit.json"
    circuit(Neuron(0, 1, 1.0)).write(path)
    before = path.read_bytes()

    def refuse(*_: Any) -> None:
        (tmp_path / f".circuit.json.{os.getpid()}.tmp").touch()  # half of it
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if fails == "write_bytes" else os, fails, refuse)
    with pytest.raises(InterventionError, match=r"cannot write .*circuit\.json: No space left"):
        circuit(Neuron(3, 4, 2.0)).write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["circuit.json"]


def test_circuits_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    circuit(Neuron(0, 1, 1.0)).write(path)
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from lm_eval_cna import read_intervention\n"
        "circuit = read_intervention(sys.argv[1])\n"
        "circuit.write(sys.argv[1] + '.again')\n"
        "print(circuit.layers, circuit.sha256)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(0,)", circuit(Neuron(0, 1, 1.0)).sha256]
    assert Path(f"{path}.again").read_bytes() == path.read_bytes()
