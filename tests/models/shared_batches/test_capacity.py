"""What can share batches, and how many rows fit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.shared_batches.capacity import CPU_ROWS, DEVICE_ROWS, rows_that_fit, why_not_shared
from tests.helpers.models import VOCAB, tiny
from tests.helpers.requests import loaded


@pytest.fixture
def lm() -> CNAHFLM:
    return loaded(tiny("llama"))


def test_what_can_share_batches(lm: CNAHFLM) -> None:
    for kwargs in ({}, {"until": ["\n"]}, {"until": [], "do_sample": False, "max_gen_toks": 5}, {"temperature": 0.0}):
        assert why_not_shared(lm, kwargs) is None
    # Sampling by default, as most instruct models are configured, does not matter: greedy decoding is asked for.
    lm.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert why_not_shared(lm, {"until": [], "do_sample": False}) is None


def own(name: str) -> Callable[[Any], None]:
    return lambda model: setattr(model, "__class__", type("Own", (type(model),), {name: lambda self: None}))


def configured(**options: Any) -> Callable[[Any], None]:
    return lambda model: model.generation_config.update(**options)


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("asked", "change", "word"),
    [
        ({"do_sample": True, "temperature": 0.7}, configured(), "sampling"),
        ({"temperature": 0.7}, configured(), "sampling"),
        ({"do_sample": False, "top_k": 5}, configured(), "top_k"),
        ({}, configured(num_beams=3), "num_beams"),
        ({}, configured(guidance_scale=1.5), "guidance_scale"),
        ({}, configured(cache_implementation="static"), "cache_impl"),
        ({}, configured(stop_strings=["a"]), "stop_strings"),
        ({}, own("generate"), "generate of its own"),
        ({}, own("prepare_inputs_for_generation"), "in its own way"),
        ({}, lambda model: setattr(model.config, "rope_parameters", DYNAMIC), "dynamic positions"),
        ({}, lambda model: setattr(model.config, "is_encoder_decoder", True), "encoder-decoder"),
    ],
)
def test_what_is_not_greedy(lm: CNAHFLM, asked: dict[str, Any], change: Callable[[Any], Any], word: str) -> None:
    change(lm.model)
    assert word in (why_not_shared(lm, {"until": [], **asked}) or "")


def test_a_recurrent_model_cannot() -> None:
    config = tf.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    lm = loaded(tf.AutoModelForCausalLM.from_config(config))
    assert "cache" in (why_not_shared(lm, {"until": []}) or "")


def test_rows_that_fit_on_several_devices_fits_on_each(lm: CNAHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two devices with two layers each, one of them nearly full; a layer on the meta device runs on the first."""
    assert rows_that_fit(lm, 100, 150) == CPU_ROWS
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    free = {first: 2**34, second: 2**34}
    places = [torch.device("meta"), first, second, second]
    layers = [
        SimpleNamespace(block=SimpleNamespace(parameters=lambda place=place: iter([SimpleNamespace(device=place)])))
        for place in places
    ]
    fake: Any = SimpleNamespace(
        device=first,
        model=SimpleNamespace(config=lm.model.config, dtype=torch.float32),
        architecture=SimpleNamespace(layers=layers, layout=lm.architecture.layout),
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 2**35))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert rows_that_fit(fake, 100, 150) == DEVICE_ROWS
    free[second] = 2**24
    few = rows_that_fit(fake, 100, 150)
    assert 1 <= few < DEVICE_ROWS
    free[first], free[second] = free[second], free[first]
    assert rows_that_fit(fake, 100, 150) == few, "two layers are on each"
    free[first] = 1
    assert rows_that_fit(fake, 100, 150) == 1
