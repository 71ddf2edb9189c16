"""Checksums: damage anywhere in a document is noticed or changes nothing that it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_eval_cna.errors import InterventionError, RunError
from lm_eval_cna.files.checksum import ChecksumError, with_checksum, without_checksum
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.transformer.neurons import Neuron

DOCUMENT = {"rate": 0.125, "n": 100, "text": "ä\n sha256", "none": None, "more": {"sha256": "mine"}}


def test_what_is_written_is_read_back() -> None:
    for document in (DOCUMENT, {}, {"a": [1, 2]}):
        raw = with_checksum(json.dumps(document, indent=1, ensure_ascii=False))
        assert without_checksum(raw) == (document, True)
        assert list(json.loads(raw))[-1] == "sha256"
    assert without_checksum(b"[1]") == ([1], False)


def test_every_flipped_bit_is_noticed_or_changes_nothing() -> None:
    raw = with_checksum(json.dumps(DOCUMENT, indent=1, ensure_ascii=False))
    noticed = 0
    for position in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        try:
            found, _ = without_checksum(bytes(damaged))
        except ValueError:
            noticed += 1
        else:  # the checksum's own name was hit, so there is none, and one more entry
            assert {key: found[key] for key in DOCUMENT} == DOCUMENT
    assert noticed > len(raw) * 8 * 0.7


def test_an_edit_says_how_to_mean_it(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_json("summary.json", {"rate": 0.125})
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace("0.125", "0.925"))
    with pytest.raises(RunError, match=r"summary\.json: it is not what was written there .*last entry, \"sha256\""):
        directory.read_json("summary.json")
    with pytest.raises(ChecksumError):
        without_checksum(json.dumps(json.loads(path.read_bytes())).encode())
    assert directory.notes == ()
    path.write_text('{"rate": 0.925}')
    assert directory.read_json("summary.json") == {"rate": 0.925}
    assert directory.notes[0].startswith("summary.json has no checksum")


def test_a_changed_delta_and_a_changed_vector_are_refused(tmp_path: Path) -> None:
    import torch

    circuit, vectors = tmp_path / "c.json", tmp_path / "v.safetensors"
    Circuit(method="cna", name="c", neurons=(Neuron(1, 2, 0.75),)).write(circuit)
    circuit.write_bytes(circuit.read_bytes().replace(b"0.75", b"0.85"))
    with pytest.raises(InterventionError, match=r"c\.json is damaged: it is not what was written"):
        read_intervention(circuit)
    Vectors(method="caa", name="v", tensors={0: torch.tensor([1.5, 2.0])}).write(vectors)
    raw = bytearray(vectors.read_bytes())
    raw[-1] ^= 1
    vectors.write_bytes(raw)
    with pytest.raises(InterventionError, match=r"v\.safetensors is damaged"):
        read_intervention(vectors)
