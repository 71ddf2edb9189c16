"""Shapes refuse, identity warns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import (
    check_fit,
    columns_sha256,
    describe_model,
    fit_warnings,
    named_columns,
)
from lm_eval_cna.interventions.header import DiscoveryInfo, ModelInfo
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.neurons import Neuron
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import tiny


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return find_architecture(tiny("llama"))  # 3 layers of 48 neurons, hidden 32


def made_on(architecture: Architecture, **fields: Any) -> Circuit:
    """A circuit that was found on `architecture`, some facts of its header changed."""
    found = circuit(architecture)
    info = describe_model(architecture, named_columns(found, architecture), id="a/b", revision="r1")
    return found.model_copy(
        update={
            "model": info.model_copy(update=fields),
            "discovery": DiscoveryInfo(chat_template_sha256="t1"),
        }
    )


def warned(intervention: Circuit, architecture: Architecture, **given: Any) -> tuple[str, ...]:
    return fit_warnings(intervention, architecture, **{"revision": "r1", "chat_template_sha256": "t1", **given})


def test_what_was_made_here_fits_without_a_word(architecture: Architecture) -> None:
    found = made_on(architecture)
    check_fit(found, architecture)
    check_fit(vectors(architecture), architecture)
    assert warned(found, architecture) == ()
    assert found.model.num_layers == 3 and found.model.mlp_width == 48 and found.model.hidden_size == 32
    assert found.model.dtype == "float32" and found.model.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(("field", "value"), [("num_layers", 4), ("mlp_width", 64), ("hidden_size", 16)])
def test_another_shape_is_refused(architecture: Architecture, field: str, value: int) -> None:
    with pytest.raises(InterventionError) as caught:
        check_fit(made_on(architecture, **{field: value}), architecture)
    message = str(caught.value)
    assert f"a/b of {field} {value}" in message and "LlamaForCausalLM" in message and "discover" in message


@pytest.mark.parametrize(("layer", "index"), [(3, 0), (0, 48)])
def test_a_neuron_that_the_model_has_not_is_refused(architecture: Architecture, layer: int, index: int) -> None:
    foreign = Circuit(method="cna", name="foreign", neurons=(Neuron(layer, index, 1.0),))
    with pytest.raises(InterventionError, match=f"neuron {index} of layer {layer}; allowed: 3 layers of 48 neurons"):
        check_fit(foreign, architecture)


@pytest.mark.parametrize(
    ("tensors", "words"), [({3: torch.ones(32)}, "layer 3; allowed: 3 layers"), ({0: torch.ones(31)}, "are 31 wide")]
)
def test_vectors_of_another_shape_are_refused(architecture: Architecture, tensors: Any, words: str) -> None:
    with pytest.raises(InterventionError, match=words):
        check_fit(vectors(architecture).model_copy(update={"tensors": tensors}), architecture)


@pytest.mark.parametrize(
    ("made", "model", "given", "words"),
    [
        ({}, {}, {"revision": "r2"}, [("revision", "r1", "r2")]),
        ({"revision": None}, {}, {"revision": "r2"}, []),
        ({}, {}, {"chat_template_sha256": "t2"}, [("chat template",)]),
        ({}, {}, {"chat_template_sha256": None}, []),
        ({}, {"seed": 1}, {}, [("columns of the named neurons",)]),
        ({}, {"dtype": torch.bfloat16}, {}, [("float32", "bfloat16", "cannot be compared")]),
        ({}, {"seed": 1}, {"revision": "r2", "chat_template_sha256": "t2"}, [("revision",), ("chat",), ("columns",)]),
    ],
)
def test_warnings(architecture: Architecture, made: Any, model: Any, given: Any, words: list[tuple[str, ...]]) -> None:
    warnings = warned(made_on(architecture, **made), find_architecture(tiny("llama", **model)), **given)
    assert len(warnings) == len(words)
    for warning, parts in zip(warnings, words, strict=True):
        assert all(part in warning for part in parts), warning


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_columns_hash_sees_the_named_columns_and_no_others(family: str) -> None:
    model = tiny(family)
    architecture = find_architecture(model)
    named = [(0, 3), (2, 5)]
    before = columns_sha256(architecture, named)
    assert before == columns_sha256(architecture, reversed(named))
    (projection,) = architecture.layers[2].projections
    column = (slice(None), 4) if projection.neuron_dim else (4, slice(None))
    with torch.no_grad():
        projection.weight[column] += 1
    assert columns_sha256(architecture, named) == before
    column = (0, 5) if projection.neuron_dim else (5, 0)
    with torch.no_grad():
        projection.weight[column] += 1e-6
    assert columns_sha256(architecture, named) != before


def test_what_is_not_named_or_not_in_memory_is_not_compared(architecture: Architecture) -> None:
    foreign = Circuit(method="cna", name="foreign", model=ModelInfo(), neurons=(Neuron(2, 47, 1.0),))
    check_fit(foreign, architecture)
    assert warned(foreign, architecture) == ()
    with torch.device("meta"):
        absent = find_architecture(tiny("llama"))
    assert warned(made_on(architecture), absent) == ("weights: not verified, since they cannot be read",)
