"""Intervention files: what is written comes back, and whatever is not whole and consistent is one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import CIRCUIT_SCHEMA, Circuit
from lm_eval_cna.interventions.header import DiscoveryInfo, ModelInfo, UniversalFilter
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import VECTORS_SCHEMA, Vectors
from lm_eval_cna.transformer.neurons import Neuron

DOCUMENT: dict[str, Any] = {
    "schema": CIRCUIT_SCHEMA,
    "method": "cna",
    "name": "refusal",
    "model": {"id": "a/b", "num_layers": 4, "mlp_width": 100},
    "neurons": [{"layer": 2, "index": 7, "delta": -3.5}, {"layer": 0, "index": 99, "delta": 1.0}],
}
HEADER = {"schema": VECTORS_SCHEMA, "method": "caa", "name": "refusal", "model": {"num_layers": 4, "hidden_size": 3}}

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
pairs = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 63), finite),
    min_size=1,
    max_size=20,
    unique_by=lambda entry: entry[:2],
)
models = st.builds(
    ModelInfo,
    id=st.none() | names,
    revision=st.none() | names,
    num_layers=st.none() | st.just(12),
    mlp_width=st.none() | st.just(64),
    hidden_size=st.none() | st.just(5),
    columns_sha256=st.none() | names,
)
discoveries = st.builds(
    DiscoveryInfo,
    contrast=names,
    positive=st.integers(0, 1000),
    fraction=st.none() | st.floats(0, 1),
    excluded_layers=st.lists(st.integers(0, 11), max_size=3).map(tuple),
    universal_filter=st.none()
    | st.builds(
        UniversalFilter,
        fraction=st.just(0.001),
        share=st.just(0.8),
        prompts=st.just(40),
        prompts_sha256=names,
        neurons=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 63)), max_size=3).map(tuple),
    ),
    versions=st.dictionaries(names, names, max_size=2),
)


def circuit(*neurons: Neuron, method: Any = "cna", **fields: Any) -> Circuit:
    return Circuit(method=method, name="refusal", neurons=neurons, **fields)


def written(folder: Path, document: Any, name: str = "circuit.json") -> Path:
    path = folder / name
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


def vectors_bytes(tensors: dict[str, torch.Tensor], header: Any = HEADER) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    return save(tensors, metadata={"lm-eval-cna": text})


def refusal(path: str | Path) -> str:
    """The message of a refused file, which must be one line."""
    with pytest.raises(InterventionError) as caught:
        read_intervention(path)
    message = str(caught.value)
    assert message and "\n" not in message and "\r" not in message
    return message


# Round trips


@settings(max_examples=60, deadline=None)
@given(entries=pairs, model=models, discovery=discoveries, name=names, ranked=st.booleans())
def test_a_circuit_comes_back_as_it_was(
    entries: list[tuple[int, int, float]], model: ModelInfo, discovery: DiscoveryInfo, name: str, ranked: bool
) -> None:
    neurons = [Neuron(*entry) for entry in entries]
    if ranked:
        neurons.sort(key=lambda neuron: -abs(neuron.delta or 0.0))
    before = Circuit(
        method="cna" if ranked else "random",
        name=name,
        model=model,
        discovery=discovery,
        neurons=tuple(neurons if ranked else [Neuron(n.layer, n.index) for n in neurons]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "er" / "circuit.json"
        before.write(path)
        after = read_intervention(path)
        assert after == before
        assert isinstance(after, Circuit) and after.sha256 == before.sha256
        first = path.read_bytes()
        after.write(path)
        assert path.read_bytes() == first
        assert [entry.name for entry in path.parent.iterdir()] == ["circuit.json"]


@settings(max_examples=40, deadline=None)
@given(
    layers=st.sets(st.integers(0, 11), min_size=1, max_size=4),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=5, max_size=5),
    model=models,
    discovery=discoveries,
    place=st.sampled_from(["write", "block"]),
)
def test_vectors_come_back_bit_for_bit(
    layers: set[int], values: list[float], model: ModelInfo, discovery: DiscoveryInfo, place: Any
) -> None:
    tensors = {layer: torch.tensor(values) + layer for layer in sorted(layers)}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        return
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


def test_the_file_is_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    circuit(Neuron(12, 4711, 1.83), Neuron(3, 0, -0.5)).write(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(document)[:3] == ["schema", "method", "name"] and list(document)[-2:] == ["neurons", "sha256"]
    assert document["schema"] == "lm-eval-cna/circuit/1"
    assert document["neurons"][0] == {"layer": 12, "index": 4711, "delta": 1.83}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum(line.strip().startswith('{"layer"') for line in lines) == 2  # one line a neuron, so that diffs read well


def test_vectors_of_another_precision_are_written_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    Vectors(method="caa", name="v", tensors={0: torch.tensor([1.5, 2.0]).bfloat16()}).write(path)
    read = read_intervention(path)
    assert isinstance(read, Vectors)
    assert read.tensors[0].dtype == torch.float32 and read.tensors[0].tolist() == [1.5, 2.0]


# Refusals of circuits


def changed(**fields: Any) -> dict[str, Any]:
    return {**DOCUMENT, **fields}


def neurons(*entries: Any, **fields: Any) -> dict[str, Any]:
    return changed(neurons=list(entries), **fields)


GOOD = {"layer": 0, "index": 1, "delta": 1.0}


def test_the_documents_that_the_refusals_change_are_good(tmp_path: Path) -> None:
    assert isinstance(read_intervention(written(tmp_path, DOCUMENT)), Circuit)
    assert isinstance(read_intervention(written(tmp_path, neurons(GOOD))), Circuit)
    good = vectors_bytes({"layer.0": torch.ones(3), "layer.3": torch.zeros(3)})
    assert isinstance(read_intervention(written(tmp_path, good, "v.safetensors")), Vectors)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (
            changed(schema="lm-eval-cna/circuit/3"),
            ["another schema", "'lm-eval-cna/circuit/3'", "lm-eval-cna/circuit/1 or lm-eval-cna/circuit/2"],
        ),
        (changed(schema=VECTORS_SCHEMA), ["another schema", VECTORS_SCHEMA, CIRCUIT_SCHEMA]),
        (changed(schema=3), ["another schema", "got 3"]),
        ({key: value for key, value in DOCUMENT.items() if key != "schema"}, ["no schema", CIRCUIT_SCHEMA]),
        ([DOCUMENT], ["no schema"]),
        ({}, ["no schema"]),
        (changed(method="caa"), ["method", "'cna', 'top-activation' or 'random'"]),
        (changed(strength=2), ["strength", "not permitted"]),
        (changed(model={"num_layers": 4, "mlp_width": 100, "colour": "blue"}), ["model.colour", "not permitted"]),
        (changed(model={"num_layers": "4"}), ["model.num_layers", "integer"]),
        (changed(model={"num_layers": 0}), ["model.num_layers", "greater than or equal to 1"]),
        (changed(discovery={"fraction": float("nan")}), ["discovery.fraction", "finite"]),
        (changed(discovery={"lucky": True}), ["discovery.lucky"]),
        (changed(name=None), ["name", "string"]),
        (changed(neurons=None), ["neurons"]),
        (neurons(), ["neurons", "at least 1"]),
        (neurons({"layer": 4, "index": 1, "delta": 1.0}), ["neurons.0", "layer 4", "4 layers"]),
        (neurons({"layer": -1, "index": 1, "delta": 1.0}), ["neurons.0", "layer -1", "4 layers"]),
        (neurons({"layer": 0, "index": 100, "delta": 1.0}), ["neurons.0", "index 100", "width 100"]),
        (neurons({"layer": 0, "index": -1, "delta": 1.0}), ["neurons.0", "index -1", "width 100"]),
        (neurons({"layer": 10**9, "index": 1, "delta": 1.0}, model={}), ["neurons.0", "layer 1000000000", "any model"]),
        (neurons({"layer": 0, "index": 2**31, "delta": 1.0}, model={}), ["neurons.0", "index 2147483648", "any MLP"]),
        (neurons({"layer": True, "index": 1, "delta": 1.0}), ["neurons.0.layer", "integer"]),
        (neurons({"layer": 0.0, "index": 1, "delta": 1.0}), ["neurons.0.layer", "integer"]),
        (neurons({"layer": "0", "index": 1, "delta": 1.0}), ["neurons.0.layer", "integer"]),
        (neurons({"layer": 0, "index": 1, "delta": float("nan")}), ["neurons.0.delta", "finite"]),
        (neurons({"layer": 0, "index": 1, "delta": float("-inf")}), ["neurons.0.delta", "finite"]),
        (neurons({"layer": 0, "index": 1, "delta": 10**400}), ["an integer of 401 digits"]),
        (neurons({"layer": 0, "index": 1, "delta": "big"}), ["neurons.0.delta", "number"]),
        (neurons({"layer": 0, "index": 1}), ["need deltas"]),
        (neurons(GOOD, {"layer": 0, "index": 2}), ["need deltas"]),
        (neurons({"layer": 0, "delta": 1.0}), ["neurons.0", "layer, index, delta", "['delta', 'layer']"]),
        (neurons({**GOOD, "weight": 2}), ["neurons.0", "'weight'"]),
        (neurons(GOOD, GOOD), ["(0, 1)", "more than once"]),
        (neurons(GOOD, {**GOOD, "delta": None}, method="random"), ["(0, 1)", "more than once"]),
        (neurons(GOOD, {"layer": 0, "index": 2, "delta": -1.5}), ["sorted by |delta|"]),
        (neurons([0]), ["neurons.0"]),
        (neurons("abc"), ["neurons.0"]),
        (b"", ["not JSON", "cut short"]),
        (b"\xff\xfe\x00", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b'{"schema": ' + b"1" * 5000 + b"}", ["not JSON"]),
    ],
)
def test_a_wrong_circuit_is_one_line_that_says_what(tmp_path: Path, document: Any, says: list[str]) -> None:
    path = written(tmp_path, document)
    message = refusal(path)
    assert str(path) in message
    for part in says:
        assert part in message, message


def test_a_circuit_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json"
    circuit(Neuron(1, 2, 3.0), Neuron(0, 1, 1.0)).write(whole)
    data = whole.read_bytes()
    for length in range(0, len(data.rstrip()), 37):
        assert "not JSON" in refusal(written(tmp_path, data[:length]))


def test_unsorted_random_circuits_are_fine(tmp_path: Path) -> None:
    entries = [{"layer": 0, "index": 5}, {"layer": 1, "index": 2, "delta": 9.0}]
    read = read_intervention(written(tmp_path, neurons(*entries, method="random")))
    assert isinstance(read, Circuit) and read.neurons == (Neuron(0, 5, None), Neuron(1, 2, 9.0))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nothing.json")
    assert "no such intervention file" in message and "nothing.json" in message and "discover" in message
    assert "no such intervention file" in refusal(tmp_path)
    assert "\n" not in refusal(tmp_path / "new\nline.json")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_cna.interventions.circuit._MAX_BYTES", 2**20)
    message = refusal(written(tmp_path, b" " * (2**20 + 1)))
    assert "too large" in message and "1 MiB" in message


@pytest.mark.parametrize("address", ["hf://owner/repo/file.json", "hf://owner/file.json@main", "hf://a/../b/c@main"])
def test_hub_addresses_name_owner_repo_file_and_revision(address: str) -> None:
    message = refusal(address)
    assert repr(address) in message and "hf://owner/repo/file@revision" in message


def test_a_hub_that_is_not_reachable() -> None:
    assert "cannot fetch hf://owner/repo/circuit.json@main" in refusal("hf://owner/repo/circuit.json@main")


def test_wrong_circuits_in_code_are_refused_too() -> None:
    with pytest.raises(ValueError, match="more than once"):
        circuit(Neuron(0, 1, 2.0), Neuron(0, 1, 1.0))
    with pytest.raises(ValueError, match="frozen"):
        circuit(Neuron(0, 1, 2.0)).name = "other"


# Refusals of vectors


@pytest.mark.parametrize(
    ("tensors", "header", "says"),
    [
        (
            {"layer.0": torch.ones(3)},
            {**HEADER, "schema": "lm-eval-cna/vectors/9"},
            ["not a vectors file", "vectors/9"],
        ),
        ({"layer.0": torch.ones(3)}, {**HEADER, "schema": CIRCUIT_SCHEMA}, ["not a vectors file", CIRCUIT_SCHEMA]),
        ({"layer.0": torch.ones(3)}, [], ["not a vectors file", "no header"]),
        ({"layer.0": torch.ones(3)}, "{", ["not a readable safetensors file"]),
        ({"layer.0": torch.ones(3)}, {**HEADER, "method": "cna"}, ["method"]),
        ({"layer.0": torch.ones(3)}, {**HEADER, "place": "head"}, ["place"]),
        ({"layer.0": torch.ones(3)}, {**HEADER, "strength": 1}, ["strength", "not permitted"]),
        ({}, HEADER, ["tensors", "at least 1"]),
        ({"weight": torch.ones(3)}, HEADER, ["unknown name", "'weight'", "layer.<number>"]),
        ({"layer.one": torch.ones(3)}, HEADER, ["unknown name", "'layer.one'"]),
        ({"layer.-1": torch.ones(3)}, HEADER, ["unknown name", "'layer.-1'"]),
        ({"layer.9999999": torch.ones(3)}, HEADER, ["unknown name"]),
        ({"layer.4": torch.ones(3)}, HEADER, ["layer.4", "4 layers"]),
        ({"layer.0": torch.ones(2)}, HEADER, ["sizes [2]", "width 3"]),
        ({"layer.0": torch.ones(3), "layer.1": torch.ones(2)}, {**HEADER, "model": {}}, ["sizes [2, 3] in one model"]),
        ({"layer.0": torch.ones(3, 1)}, HEADER, ["layer.0", "one dimension"]),
        ({"layer.0": torch.tensor([1.0, float("nan"), 0.0])}, HEADER, ["layer.0", "not finite"]),
        ({"layer.0": torch.tensor([1.0, float("inf"), 0.0])}, HEADER, ["layer.0", "not finite"]),
    ],
)
def test_wrong_vectors_are_one_line_that_says_what(
    tmp_path: Path, tensors: dict[str, torch.Tensor], header: Any, says: list[str]
) -> None:
    path = written(tmp_path, vectors_bytes(tensors, header), "v.safetensors")
    message = refusal(path)
    assert str(path) in message
    for part in says:
        assert part in message, message


def test_vectors_cut_short_or_of_another_kind(tmp_path: Path) -> None:
    data = vectors_bytes({"layer.0": torch.ones(3)})
    for length in (0, 4, 60, len(data) - 1):
        assert "not a readable safetensors file" in refusal(written(tmp_path, data[:length], "v.safetensors"))
    assert "not a readable safetensors file" in refusal(written(tmp_path, DOCUMENT, "v.safetensors"))
    assert "not JSON" in refusal(written(tmp_path, data, "v.json"))
    assert "no header" in refusal(written(tmp_path, save({"layer.0": torch.ones(3)}), "v.safetensors"))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    torch.save({"layer.0": torch.ones(3)}, path)
    assert "not a readable safetensors file" in refusal(path)
    assert "not JSON" in refusal(path.rename(tmp_path / "c.pt"))


def test_two_names_of_one_layer_are_refused(tmp_path: Path) -> None:
    data = vectors_bytes({"layer.0": torch.ones(3), "layer.00": torch.zeros(3)})
    assert "layer.00" in refusal(written(tmp_path, data, "v.safetensors"))


# The reference repository's circuits


def test_reference_circuits(tmp_path: Path) -> None:
    path = written(tmp_path, {"0,-1,7": 1.0, "0,-2,7": -3.0, "5,-1,2": 2, "1,-1,3": -2.0}, "found.json")
    read = read_intervention(path)
    assert isinstance(read, Circuit)
    assert read.neurons == (Neuron(0, 7, -3.0), Neuron(1, 3, -2.0), Neuron(5, 2, 2.0))
    assert (read.method, read.name, read.model) == ("cna", "found", ModelInfo())


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"0,1,2": "much"}, ["not a reference circuit", "much", "layer,position,neuron"]),
        ({"0,1,2": None}, ["not a reference circuit"]),
        ({"0,1,x": 1.0}, ["not a reference circuit", "0,1,x"]),
        ({"-1,1,2": 1.0}, ["layer -1"]),
        ({"0,1,-2": 1.0}, ["index -2"]),
        ({"0,1,2": float("inf")}, ["not a reference circuit", "finite number"]),
        ({"0,1,2": 1.0, "name": "x"}, ["no schema"]),
    ],
)
def test_wrong_reference_circuits(tmp_path: Path, document: Any, says: list[str]) -> None:
    message = refusal(written(tmp_path, document))
    for part in says:
        assert part in message, message


def test_reference_circuits_with_nan_are_refused(tmp_path: Path) -> None:
    assert "nan" in refusal(written(tmp_path, {"0,1,2": float("nan"), "0,1,3": 1.0}))


def test_reference_circuits_with_huge_integers_are_refused(tmp_path: Path) -> None:
    assert "an integer of 401 digits" in refusal(written(tmp_path, {"0,1,2": 10**400}))


# What a circuit says of itself


def test_prefix() -> None:
    whole = circuit(Neuron(2, 7, 3.0), Neuron(0, 1, -2.0), Neuron(2, 3, 1.0))
    assert whole.prefix(3) == whole
    assert whole.prefix(2).neurons == whole.neurons[:2] and whole.prefix(2).name == whole.name
    assert whole.prefix(1).layers == (2,)
    for k in (0, -1, 4):
        with pytest.raises(InterventionError, match=f"circuit size; got {k}; allowed: 1 to 3"):
            whole.prefix(k)


def test_layers() -> None:
    whole = circuit(Neuron(2, 7, 3.0), Neuron(0, 1, -2.0), Neuron(2, 3, 1.0))
    assert whole.layers == (0, 2)
    assert whole.by_layer() == {0: [1], 2: [3, 7]}


def test_the_hash_is_of_what_steering_does_with_it() -> None:
    one = circuit(Neuron(2, 7, 3.0), Neuron(0, 1, -2.0))
    same = circuit(Neuron(0, 1), Neuron(2, 7), method="random", model=ModelInfo(id="x"))
    assert one.sha256 == same.sha256 == one.model_copy(update={"name": "other"}).sha256
    assert one.sha256 != circuit(Neuron(2, 7, 3.0)).sha256
    assert one.sha256 != circuit(Neuron(2, 7, 3.0), Neuron(1, 0, -2.0)).sha256


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


# Writing


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "circuit.json"
    circuit(Neuron(0, 1, 1.0)).write(path)
    before = path.read_bytes()

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    if fails == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InterventionError, match=r"cannot write .*circuit\.json: (No space left|Read-only)"):
        circuit(Neuron(3, 4, 2.0)).write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["circuit.json"]


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InterventionError, match="cannot write"):
        circuit(Neuron(0, 1, 1.0)).write(tmp_path / "file" / "circuit.json")


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
