"""circuit/2, the files of mixtures of experts; circuit/1 is in test_intervention."""

from __future__ import annotations

import hashlib
import json
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
from lm_eval_cna.interventions.profile import layer_profile, overlap
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.report.interventions import facts, overlap_rows
from lm_eval_cna.transformer.neurons import SHARED, Expert, Neuron

EXPERTS = {"count": 4, "width": 10, "shared_width": 6, "layers": [0, 2, 3]}
DOCUMENT: dict[str, Any] = {
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


def written(folder: Path, document: Any) -> Path:
    path = folder / "circuit.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def read(path: Path) -> Circuit:
    found = read_intervention(path)
    assert isinstance(found, Circuit)
    return found


places = st.one_of(
    st.tuples(st.sampled_from([0, 2, 3]), st.integers(0, 9), st.integers(0, 3)),
    st.tuples(st.sampled_from([0, 2, 3]), st.integers(0, 5), st.just(SHARED)),
    st.tuples(st.just(1), st.integers(0, 29), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(places, min_size=1, max_size=20, unique=True),
    universal=st.lists(places, max_size=4),
    known=st.booleans(),
)
def test_a_circuit_of_experts_comes_back_as_it_was(
    entries: list[tuple[int, int, Expert | None]], universal: list[tuple[int, int, Expert | None]], known: bool
) -> None:
    neurons = tuple(Neuron(layer, index, None, expert) for layer, index, expert in entries)
    found_as = UniversalFilter(
        fraction=0.1,
        share=0.8,
        prompts=3,
        prompts_sha256="",
        neurons=tuple(Neuron(layer, index, None, expert).place for layer, index, expert in universal),
    )
    experts = known or any(expert is not None for _, _, expert in entries)
    if not experts and any(expert is not None for _, _, expert in universal):
        return
    before = Circuit(
        method="random",
        name="x",
        model=MODEL if known else ModelInfo(),
        neurons=neurons,
        discovery=DiscoveryInfo(universal_filter=found_as),
    )
    assert before.schema_ == (EXPERTS_SCHEMA if experts else CIRCUIT_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "circuit.json"
        before.write(path)
        after = read(path)
        assert after == before and after.sha256 == before.sha256
        first = path.read_bytes()
        after.write(path)
        assert path.read_bytes() == first


def test_the_file_is_the_documented_one(tmp_path: Path) -> None:
    found = read(written(tmp_path, DOCUMENT))
    found.write(tmp_path / "again.json")
    document = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert document["schema"] == "lm-eval-cna/circuit/2"
    assert document["model"]["experts"] == EXPERTS
    assert document["neurons"] == DOCUMENT["neurons"]
    assert list(document["neurons"][0]) == ["layer", "expert", "index", "delta"]
    assert found.places == ((2, 3, 7), (1, 29), (0, SHARED, 5))
    assert found.by_projection() == {(0, SHARED): [5], (1, None): [29], (2, 3): [7]}
    with pytest.raises(InterventionError, match="refusal names neurons of experts"):
        found.by_layer()


def test_a_dense_circuit_knows_nothing_of_experts(tmp_path: Path) -> None:
    """Byte for byte what was written before there were experts, but for the seal, and its hash."""
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


def neuron(**changes: Any) -> dict[str, Any]:
    return {"layer": 2, "expert": 3, "index": 7, "delta": 1.0, **changes}


def changed(*neurons: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**DOCUMENT, **({"neurons": list(neurons)} if neurons else {}), **fields}


def experts(**changes: Any) -> dict[str, Any]:
    return {**DOCUMENT["model"], "experts": {**EXPERTS, **changes}}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (changed({"layer": 2, "index": 7, "delta": 1.0}), ["neurons.0", "layer, expert, index, delta"]),
        (changed(neuron(expert=4)), ["neurons.0", "expert 4 is outside layer 2's 4"]),
        (changed(neuron(expert=-1)), ["neurons.0", "expert -1"]),
        (changed(neuron(expert=10**30), model={}), ["neurons.0", "is outside any model"]),
        (changed(neuron(expert=True)), ["neurons.0.expert"]),
        (changed(neuron(expert=1.0)), ["neurons.0.expert"]),
        (changed(neuron(expert="Shared")), ["neurons.0.expert"]),
        (changed(neuron(expert=[1])), ["neurons.0.expert"]),
        (changed(neuron(expert=None)), ["neurons.0", "no expert is named, and layer 2 has 4"]),
        (changed(neuron(layer=1)), ["neurons.0", "expert 3 is named, and layer 1 has none"]),
        (changed(neuron(index=10)), ["neurons.0", "index 10", "an expert of width 10"]),
        (changed(neuron(expert=SHARED, index=6)), ["neurons.0", "index 6", "an expert of width 6"]),
        (changed(neuron(layer=1, expert=None, index=30)), ["neurons.0", "index 30", "an MLP of width 30"]),
        (changed(neuron(layer=4)), ["neurons.0", "layer 4", "4 layers"]),
        (changed(neuron(), neuron()), ["(2, 3, 7) is named more than once"]),
        (changed(neuron(), neuron(expert=None), model={}), ["some neurons of layer 2 name an expert and some do not"]),
        (changed(neuron(expert=SHARED), model=experts(shared_width=None)), ["the shared expert is named", "has none"]),
        (changed(model=experts(count=0)), ["model.experts.count", "greater than or equal to 1"]),
        (changed(model=experts(width="10")), ["model.experts.width", "integer"]),
        (changed(model=experts(layers=[])), ["model.experts.layers", "at least 1"]),
        (changed(model=experts(layers=[2, 0])), ["model.experts", "ascending"]),
        (changed(model=experts(layers=[0, 0])), ["model.experts", "once"]),
        (changed(model=experts(layers=[0, 4])), ["layer 4 has experts in a model of 4 layers"]),
        (changed(model={"experts": EXPERTS}), ["a depth that is not named"]),
        (changed(model=experts(colour="blue")), ["colour", "not permitted"]),
        (changed(schema=CIRCUIT_SCHEMA), ["neurons.0 must have the keys layer, index, delta"]),
        (
            {**changed(schema=CIRCUIT_SCHEMA), "neurons": [{"layer": 1, "index": 2, "delta": 1.0}]},
            ["model.experts needs the schema lm-eval-cna/circuit/2"],
        ),
        ({**changed(schema=CIRCUIT_SCHEMA, model={}), "neurons": [[1, 2, 3.0, 0]]}, ["neurons.0"]),
    ],
)
def test_hostile_files_are_one_line(tmp_path: Path, document: Any, says: list[str]) -> None:
    with pytest.raises(InterventionError) as caught:
        read_intervention(written(tmp_path, document))
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message


def test_universal_experts_need_the_second_schema() -> None:
    found_as = UniversalFilter(fraction=0.1, share=0.8, prompts=3, prompts_sha256="", neurons=((0, 1, 2),))
    with pytest.raises(ValidationError, match="universal neurons of experts"):
        Circuit(method="random", name="x", neurons=(Neuron(0, 1),), discovery=DiscoveryInfo(universal_filter=found_as))


def test_profile_overlap_and_facts() -> None:
    neurons = (Neuron(2, 7, None, 3), Neuron(2, 7, None, 1), Neuron(0, 1, None, SHARED), Neuron(1, 29))
    one = Circuit(method="random", name="one", model=MODEL, neurons=neurons)
    other = Circuit(method="random", name="other", model=MODEL, neurons=(Neuron(2, 7, None, 1), Neuron(3, 1, None, 0)))
    assert layer_profile(one).whole.counts == (1, 1, 2, 0)
    found = overlap(one, other)
    assert found.common == 1 and found.of_smaller == 0.5, "the same index in two experts is two neurons"
    assert found.by_chance == 4 / (3 * (4 * 10 + 6) + 30)
    assert ("overlap of random circuits", "2.38 %") in overlap_rows(one, other)
    said = dict(facts(one))  # type: ignore[arg-type]
    assert said["size"] == "4 neurons in 3 layers: 2 in 2 routed experts, 1 in shared experts, 1 in dense layers"
    assert said["architecture"] == "3 layers of 4 experts of 10 neurons and a shared one of 6, 1 of 30 neurons"
    dense = Circuit(method="random", name="dense", model=ModelInfo(num_layers=4, mlp_width=30), neurons=(Neuron(0, 1),))
    with pytest.raises(InterventionError, match="different shapes"):
        overlap(one, dense)
