"""Circuits and their files, of dense models (circuit/1) and of mixtures of experts (circuit/2)."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import CIRCUIT_SCHEMA, EXPERTS_SCHEMA, Circuit
from lm_eval_cna.interventions.header import DiscoveryInfo, ExpertsInfo, ModelInfo, UniversalFilter
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import VECTORS_SCHEMA
from lm_eval_cna.transformer.neurons import SHARED, Expert, Neuron

DENSE: dict[str, Any] = {
    "schema": CIRCUIT_SCHEMA,
    "method": "cna",
    "name": "refusal",
    "model": {"id": "a/b", "num_layers": 4, "mlp_width": 100},
    "neurons": [{"layer": 2, "index": 7, "delta": -3.5}, {"layer": 0, "index": 99, "delta": 1.0}],
}
EXPERTS = {"count": 4, "width": 10, "shared_width": 6, "layers": [0, 2, 3]}
MIXED: dict[str, Any] = {
    "schema": EXPERTS_SCHEMA,
    "method": "cna",
    "name": "refusal",
    "model": {"id": "a/b", "num_layers": 4, "mlp_width": 30, "experts": EXPERTS},
    "neurons": [
        {"layer": 2, "expert": 3, "index": 7, "delta": -3.5},
        {"layer": 1, "expert": None, "index": 29, "delta": 3.0},
        {"layer": 0, "expert": SHARED, "index": 5, "delta": 1.0},
    ],
}
MODEL = ModelInfo(num_layers=4, mlp_width=30, experts=ExpertsInfo(count=4, width=10, shared_width=6, layers=(0, 2, 3)))


def circuit(*neurons: Neuron, method: Any = "cna", **fields: Any) -> Circuit:
    return Circuit(method=method, name="refusal", neurons=neurons, **fields)


def written(folder: Path, document: Any) -> Path:
    path = folder / "circuit.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


def read(path: Path) -> Circuit:
    found = read_intervention(path)
    assert isinstance(found, Circuit)
    return found


def refusal(path: Path) -> str:
    """The message of a refused file, which must be one line with the file's name."""
    with pytest.raises(InterventionError) as caught:
        read_intervention(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "\r" not in message
    return message


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
places = st.one_of(
    st.tuples(st.sampled_from([0, 2, 3]), st.integers(0, 9), st.integers(0, 3)),
    st.tuples(st.sampled_from([0, 2, 3]), st.integers(0, 5), st.just(SHARED)),
    st.tuples(st.just(1), st.integers(0, 29), st.none()),
)


@settings(max_examples=80, deadline=None)
@given(
    entries=st.lists(st.tuples(places, finite), min_size=1, max_size=20, unique_by=lambda entry: entry[0]),
    universal=st.lists(places, max_size=4),
    known=st.booleans(),
    dense=st.booleans(),
    name=names,
    versions=st.dictionaries(names, names, max_size=2),
)
def test_a_circuit_comes_back_as_it_was(
    entries: list[tuple[tuple[int, int, Expert | None], float]],
    universal: list[tuple[int, int, Expert | None]],
    known: bool,
    dense: bool,
    name: str,
    versions: dict[str, str],
) -> None:
    def place(layer: int, index: int, expert: Expert | None) -> Neuron:
        return Neuron(1, index) if dense else Neuron(layer, index, None, expert)

    chosen = {place(*entry).place: place(*entry)._replace(delta=delta) for entry, delta in entries}
    model = ModelInfo() if not known else ModelInfo(num_layers=4, mlp_width=30, hidden_size=5) if dense else MODEL
    if not dense and not known and all(neuron.expert is None for neuron in chosen.values()):
        universal = []  # with experts they would need circuit/2
    found = UniversalFilter(
        fraction=0.1, share=0.8, prompts=3, prompts_sha256="", neurons=tuple(place(*one).place for one in universal)
    )
    before = Circuit(
        method="cna",
        name=name,
        model=model,
        neurons=tuple(sorted(chosen.values(), key=lambda neuron: -abs(neuron.delta or 0.0))),
        discovery=DiscoveryInfo(universal_filter=found, versions=versions),
    )
    experts = not dense and (known or any(neuron.expert is not None for neuron in chosen.values()))
    assert before.schema_ == (EXPERTS_SCHEMA if experts else CIRCUIT_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "er" / "circuit.json"
        before.write(path)
        after = read(path)
        assert after == before and after.sha256 == before.sha256
        first = path.read_bytes()
        after.write(path)
        assert path.read_bytes() == first
        assert [entry.name for entry in path.parent.iterdir()] == ["circuit.json"]


def test_the_file_of_a_mixture_of_experts(tmp_path: Path) -> None:
    found = read(written(tmp_path, MIXED))
    found.write(tmp_path / "again.json")
    document = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert document["schema"] == "lm-eval-cna/circuit/2"
    assert document["model"]["experts"] == EXPERTS
    assert document["neurons"] == MIXED["neurons"]
    assert list(document["neurons"][0]) == ["layer", "expert", "index", "delta"]
    assert found.places == ((2, 3, 7), (1, 29), (0, SHARED, 5))
    assert found.by_projection() == {(0, SHARED): [5], (1, None): [29], (2, 3): [7]}
    with pytest.raises(InterventionError, match="refusal names neurons of experts"):
        found.by_layer()


def test_a_dense_circuit_knows_nothing_of_experts(tmp_path: Path) -> None:
    """The documented circuit/1, byte for byte, and the documented hash of the set."""
    path = tmp_path / "circuit.json"
    model = ModelInfo(id="a/b", num_layers=4, mlp_width=30)
    found = Circuit(method="cna", name="x", model=model, neurons=(Neuron(2, 7, 3.5), Neuron(0, 1, -1.0)))
    found.write(path)
    text = path.read_text(encoding="utf-8")
    assert "expert" not in text
    assert text.startswith('{\n "schema": "lm-eval-cna/circuit/1",\n "method": "cna",\n "name": "x",\n "model": {\n')
    body, _, seal = text.rpartition(',\n "sha256": "')
    assert body.endswith(
        ' "neurons": [\n  {"layer": 2, "index": 7, "delta": 3.5},\n  {"layer": 0, "index": 1, "delta": -1.0}\n ]'
    )
    assert seal == hashlib.sha256(f"{body},".encode()).hexdigest() + '"\n}\n'
    assert found.sha256 == hashlib.sha256(b"[[0, 1], [2, 7]]").hexdigest()
    assert list(json.loads(text)["model"]) == [
        "id", "revision", "architecture", "num_layers", "mlp_width", "hidden_size", "dtype", "columns_sha256",
    ]  # fmt: skip


GOOD = {"layer": 0, "index": 1, "delta": 1.0}
ROUTED = {"layer": 2, "expert": 3, "index": 7, "delta": 1.0}


def dense(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {**DENSE, **({"neurons": entries} if entries else {}), **fields}


def mixed(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {**MIXED, **({"neurons": entries} if entries else {}), **fields}


def one(**changes: Any) -> dict[str, Any]:
    return dense({**GOOD, **changes})


def routed(**changes: Any) -> dict[str, Any]:
    return mixed({**ROUTED, **changes})


def experts(**changes: Any) -> dict[str, Any]:
    return mixed(model={**MIXED["model"], "experts": {**EXPERTS, **changes}})


@pytest.mark.parametrize("document", [DENSE, one(), MIXED, routed()])
def test_the_documents_that_the_refusals_change_are_good(tmp_path: Path, document: Any) -> None:
    assert read(written(tmp_path, document)).name == "refusal"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (dense(schema=VECTORS_SCHEMA), f"another schema; got '{VECTORS_SCHEMA}'; allowed: {CIRCUIT_SCHEMA} or"),
        ({key: value for key, value in DENSE.items() if key != "schema"}, "no schema"),
        ([DENSE], "no schema"),
        ({}, "no schema"),
        (dense(method="caa"), "method: .*'cna', 'top-activation' or 'random'"),
        (dense(model={"num_layers": 4, "colour": "blue"}), "model.colour: .*not permitted"),
        (dense(model={"num_layers": 0}), "model.num_layers: .*greater than or equal to 1"),
        (dense(discovery={"fraction": float("nan")}), "discovery.fraction: .*finite"),
        (dense(neurons=[]), "neurons: .*at least 1"),
        (dense("abc"), "neurons.0"),
        (one(layer=4), "neurons.0: layer 4 is outside a model of 4 layers"),
        (one(layer=-1), "neurons.0.layer: .*; got -1"),
        (one(layer=10**9), "neurons.0.layer: .*; got 1000000000"),
        (one(layer=True), "neurons.0.layer: .*integer"),
        (one(layer="0"), "neurons.0.layer: .*integer"),
        (one(index=100), "neurons.0: index 100 is outside an MLP of width 100"),
        (one(index=-1), "neurons.0.index: .*; got -1"),
        (one(index=2**31), "neurons.0.index: .*; got 2147483648"),
        (one(delta=float("nan")), "neurons.0.delta: .*finite"),
        (one(delta=10**400), "an integer of 401 digits"),
        (one(delta=None), "need deltas"),
        (
            dense({"layer": 0, "delta": 1.0}),
            r"neurons.0 must have the keys layer, index, delta; got \['delta', 'layer'\]",
        ),
        (one(weight=2), "neurons.0 must have the keys .*'weight'"),
        (dense(GOOD, {**GOOD, "delta": None}, method="random"), r"neuron \(layer, index\) \(0, 1\) .* more than once"),
        (dense(GOOD, {"layer": 0, "index": 2, "delta": -1.5}), r"sorted by \|delta\|"),
        (b"", "not JSON: .*cut short"),
        (mixed(GOOD), "neurons.0 must have the keys layer, expert, index, delta"),
        (routed(expert=4), "neurons.0: expert 4 is outside layer 2's 4"),
        (routed(expert=-1), "neurons.0.expert"),
        (routed(expert=10**30), "neurons.0.expert"),
        (routed(expert=True), "neurons.0.expert"),
        (routed(expert="Shared"), "neurons.0.expert"),
        (routed(expert=None), "neurons.0: no expert is named, and layer 2 has 4"),
        (routed(layer=1), "neurons.0: expert 3 is named, and layer 1 has none"),
        (routed(index=10), "neurons.0: index 10 is outside an expert of width 10"),
        (routed(expert=SHARED, index=6), "neurons.0: index 6 is outside an expert of width 6"),
        (mixed(ROUTED, ROUTED), r"\(2, 3, 7\) is named more than once"),
        (mixed(ROUTED, {**ROUTED, "expert": None}, model={}), "some neurons of layer 2 name an expert and some do not"),
        (experts(shared_width=None), "the shared expert is named, and layer 0 has none"),
        (experts(count=0), "model.experts.count: .*greater than or equal to 1"),
        (experts(layers=[]), "model.experts.layers: .*at least 1"),
        (experts(layers=[2, 0]), "model.experts: .*ascending"),
        (experts(layers=[0, 4]), "layer 4 has experts in a model of 4 layers"),
        (mixed(model={"experts": EXPERTS}), "a depth that is not named"),
        (mixed({**GOOD, "layer": 1}, schema=CIRCUIT_SCHEMA), f"model.experts needs the schema {EXPERTS_SCHEMA}"),
        (
            mixed([1, 2, 3.0, 0], schema=CIRCUIT_SCHEMA, model={}),
            f"neurons.0: an expert needs the schema {EXPERTS_SCHEMA}",
        ),
        ({"0,1,2": "much"}, "not a reference circuit.*much.*layer,position,neuron"),
        ({"0,1,x": 1.0}, "not a reference circuit.*0,1,x"),
        ({"-1,1,2": 1.0}, "neurons.0.layer: .*; got -1"),
        ({"0,1,2": float("nan"), "0,1,3": 1.0}, "not a reference circuit.*nan.*finite number"),
        ({"0,1,2": 1.0, "name": "x"}, "no schema"),
    ],
)
def test_a_wrong_circuit_is_one_line_that_says_what(tmp_path: Path, document: Any, says: str) -> None:
    message = refusal(written(tmp_path, document))
    assert re.search(says, message), message


def test_a_circuit_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json"
    circuit(Neuron(1, 2, 3.0), Neuron(0, 1, 1.0)).write(whole)
    data = whole.read_bytes()
    for length in range(0, len(data.rstrip()), 37):
        assert "not JSON" in refusal(written(tmp_path, data[:length]))


def test_unsorted_random_circuits_are_fine(tmp_path: Path) -> None:
    entries = [{"layer": 0, "index": 5}, {"layer": 1, "index": 2, "delta": 9.0}]
    found = read(written(tmp_path, dense(*entries, method="random")))
    assert found.neurons == (Neuron(0, 5, None), Neuron(1, 2, 9.0))


def test_reference_circuits(tmp_path: Path) -> None:
    path = written(tmp_path, {"0,-1,7": 1.0, "0,-2,7": -3.0, "5,-1,2": 2, "1,-1,3": -2.0})
    found = read(path)
    assert found.neurons == (Neuron(0, 7, -3.0), Neuron(1, 3, -2.0), Neuron(5, 2, 2.0))
    assert (found.method, found.name, found.model) == ("cna", "circuit", ModelInfo())


def test_wrong_circuits_in_code_are_refused_too() -> None:
    with pytest.raises(ValueError, match="more than once"):
        circuit(Neuron(0, 1, 2.0), Neuron(0, 1, 1.0))
    with pytest.raises(ValueError, match="frozen"):
        circuit(Neuron(0, 1, 2.0)).name = "other"
    found = UniversalFilter(fraction=0.1, share=0.8, prompts=3, prompts_sha256="", neurons=((0, 1, 2),))
    with pytest.raises(ValidationError, match="universal neurons of experts"):
        circuit(Neuron(0, 1), method="random", discovery=DiscoveryInfo(universal_filter=found))


def test_prefix() -> None:
    whole = circuit(Neuron(2, 7, 3.0), Neuron(0, 1, -2.0), Neuron(2, 3, 1.0))
    assert whole.prefix(3) == whole
    assert whole.prefix(2).neurons == whole.neurons[:2] and whole.prefix(2).name == whole.name
    assert whole.prefix(1).layers == (2,)
    for k in (0, -1, 4):
        with pytest.raises(InterventionError, match=f"circuit size; got {k}; allowed: 1 to 3"):
            whole.prefix(k)
    assert whole.layers == (0, 2) and whole.by_layer() == {0: [1], 2: [3, 7]}


def test_the_hash_is_of_what_steering_does_with_it() -> None:
    one = circuit(Neuron(2, 7, 3.0), Neuron(0, 1, -2.0))
    same = circuit(Neuron(0, 1), Neuron(2, 7), method="random", model=ModelInfo(id="x"))
    assert one.sha256 == same.sha256 == one.model_copy(update={"name": "other"}).sha256
    assert one.sha256 != circuit(Neuron(2, 7, 3.0)).sha256
    assert one.sha256 != circuit(Neuron(2, 7, 3.0), Neuron(1, 0, -2.0)).sha256
