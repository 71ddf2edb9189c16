"""Vectors and their safetensors files: what is written comes back, and anything else is one clear line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import CIRCUIT_SCHEMA
from lm_eval_cna.interventions.header import DiscoveryInfo, ModelInfo
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import VECTORS_SCHEMA, Vectors

HEADER = {"schema": VECTORS_SCHEMA, "method": "caa", "name": "refusal", "model": {"num_layers": 4, "hidden_size": 3}}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "v.safetensors"
    path.write_bytes(data)
    return path


def vectors_bytes(tensors: dict[str, torch.Tensor], header: Any = HEADER) -> bytes:
    return save(tensors, metadata={"lm-eval-cna": header if isinstance(header, str) else json.dumps(header)})


def refusal(path: Path) -> str:
    """The message of a refused file, which must be one line with the file's name."""
    with pytest.raises(InterventionError) as caught:
        read_intervention(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "\r" not in message
    return message


@settings(max_examples=40, deadline=None)
@given(
    layers=st.sets(st.integers(0, 11), min_size=1, max_size=4),
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5),
    hidden=st.none() | st.just(5),
    contrast=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    place=st.sampled_from(["write", "block"]),
)
def test_vectors_come_back_bit_for_bit(
    layers: set[int], values: list[float], hidden: int | None, contrast: str, place: Any
) -> None:
    tensors = {layer: torch.tensor(values) + layer for layer in sorted(layers)}
    model, discovery = ModelInfo(hidden_size=hidden), DiscoveryInfo(contrast=contrast)
    before = Vectors(method="caa", name="v", model=model, discovery=discovery, place=place, tensors=tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "vectors.safetensors"
        before.write(path)
        after = read_intervention(path)
    assert isinstance(after, Vectors)
    assert (after.model, after.discovery, after.place, after.name) == (model, discovery, place, "v")
    assert after.layers == before.layers == tuple(sorted(layers))
    assert all(torch.equal(after.tensors[layer], tensors[layer]) for layer in layers)
    assert after.sha256 == before.sha256


@pytest.mark.parametrize(
    ("tensors", "header", "says"),
    [
        ({"layer.0": torch.ones(3)}, {**HEADER, "schema": CIRCUIT_SCHEMA}, ["not a vectors file", CIRCUIT_SCHEMA]),
        ({"layer.0": torch.ones(3)}, [], ["not a vectors file", "no header"]),
        ({"layer.0": torch.ones(3)}, "{", ["not a readable safetensors file"]),
        ({"layer.0": torch.ones(3)}, {**HEADER, "method": "cna"}, ["method"]),
        ({"layer.0": torch.ones(3)}, {**HEADER, "place": "head"}, ["place"]),
        ({"layer.0": torch.ones(3)}, {**HEADER, "strength": 1}, ["strength", "not permitted"]),
        ({}, HEADER, ["tensors", "at least 1"]),
        ({"weight": torch.ones(3)}, HEADER, ["unknown name", "'weight'", "layer.<number>"]),
        ({"layer.0": torch.ones(3), "layer.00": torch.ones(3)}, HEADER, ["unknown name", "'layer.00'"]),
        ({"layer.9999999": torch.ones(3)}, HEADER, ["unknown name"]),
        ({"layer.4": torch.ones(3)}, HEADER, ["layer.4", "4 layers"]),
        ({"layer.0": torch.ones(2)}, HEADER, ["sizes [2]", "width 3"]),
        ({"layer.0": torch.ones(3), "layer.1": torch.ones(2)}, {**HEADER, "model": {}}, ["sizes [2, 3] in one model"]),
        ({"layer.0": torch.ones(3, 1)}, HEADER, ["layer.0", "one dimension"]),
        ({"layer.0": torch.tensor([1.0, float("nan"), 0.0])}, HEADER, ["layer.0", "not finite"]),
    ],
)
def test_wrong_vectors_are_one_line_that_says_what(
    tmp_path: Path, tensors: dict[str, torch.Tensor], header: Any, says: list[str]
) -> None:
    message = refusal(written(tmp_path, vectors_bytes(tensors, header)))
    for part in says:
        assert part in message, message


def test_vectors_cut_short_or_of_another_kind(tmp_path: Path) -> None:
    good = read_intervention(written(tmp_path, vectors_bytes({"layer.3": torch.ones(3)})))
    assert isinstance(good, Vectors)
    good.model_copy(update={"tensors": {0: torch.ones(3).bfloat16()}}).write(tmp_path / "v.safetensors")
    again = read_intervention(tmp_path / "v.safetensors")
    assert isinstance(again, Vectors) and again.tensors[0].dtype == torch.float32
    data = vectors_bytes({"layer.0": torch.ones(3)})
    for length in (0, 4, 60, len(data) - 1):
        assert "not a readable safetensors file" in refusal(written(tmp_path, data[:length]))
    assert "no header" in refusal(written(tmp_path, save({"layer.0": torch.ones(3)})))
    torch.save({"layer.0": torch.ones(3)}, tmp_path / "v.safetensors")  # a pickle, which must not be opened
    assert "not a readable safetensors file" in refusal(tmp_path / "v.safetensors")
    assert "not JSON" in refusal((tmp_path / "v.safetensors").rename(tmp_path / "c.pt"))


def test_the_hash_of_vectors() -> None:
    def made(**fields: Any) -> Vectors:
        return Vectors(**{"method": "caa", "name": "v", "tensors": {0: torch.ones(2), 1: torch.zeros(2)}, **fields})

    hashes = {
        made().sha256,
        made(place="block").sha256,
        made(tensors={0: torch.ones(2), 2: torch.zeros(2)}).sha256,
        made(tensors={0: torch.ones(2), 1: torch.tensor([0.0, 1e-30])}).sha256,
    }
    assert len(hashes) == 4
    assert made(name="w", tensors={1: torch.zeros(2), 0: torch.ones(2).double()}).sha256 == made().sha256
