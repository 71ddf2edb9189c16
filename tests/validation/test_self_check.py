"""The self-check before a run: what it finds in a sound model, and that each kind of fault stops it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import transformers as tf

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering import apply as apply_module
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.fold import fold_columns
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.prompts import Rendering
from lm_eval_cna.validation import self_check as self_check_module
from lm_eval_cna.validation.self_check import MORE_PROMPTS, PROMPTS, SelfCheck, self_check
from lm_eval_cna.validation.self_check_hooks import ModuleCheck
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, VOCAB, left_unchanged, tiny

RunMode = Literal["auto", "fold", "hook", "rows"]
MODES: tuple[RunMode, ...] = ("fold", "hook", "rows")


class Tokenizer:
    """Enough of one: the prompts are random tokens."""

    pad_token_id = 0
    eos_token_id = 2
    chat_template = None


@pytest.fixture(autouse=True)
def _random_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(_: Rendering, prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
        draw = random.Random(0)
        return [[draw.randrange(3, VOCAB) for _ in range(draw.randint(4, 12))] for _ in prompts]

    monkeypatch.setattr(Rendering, "encode", encode)


def checked(model: tf.PreTrainedModel, mode: RunMode, **interventions: Circuit | Vectors) -> SelfCheck:
    return self_check(model, Tokenizer(), interventions, mode=mode)


def with_method(found: Circuit, method: str) -> Circuit:
    return Circuit.model_validate({**found.model_dump(by_alias=True), "method": method})


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("mode", MODES)
def test_a_sound_model(family: str, mode: RunMode) -> None:
    model = tiny(family)
    architecture = find_architecture(model)
    interventions: dict[str, Circuit | Vectors] = {"circuit": circuit(architecture)}
    if mode != "fold":
        interventions |= {"caa": vectors(architecture), "residual": vectors(architecture, place="block")}
    with left_unchanged(model):
        found = checked(model, mode, **interventions)
    assert SelfCheck.model_validate_json(found.model_dump_json()) == found
    assert found.mode == mode and found.noise == 0
    for name, intervention in interventions.items():
        seen = found.interventions[name]
        assert (seen.prompts, seen.identity, seen.layers) == (PROMPTS, 0, intervention.layers)
        assert seen.change > 1e-3
        assert seen.columns_sha256 is not None


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_left_out_is_named(mode: RunMode, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    whole = circuit(find_architecture(model))
    part = whole.model_copy(update={"neurons": tuple(neuron for neuron in whole.neurons if neuron.layer != 1)})

    def partial(setting: Setting) -> Setting:
        return setting if setting.intervention is None else replace(setting, intervention=part)

    monkeypatch.setattr(self_check_module, "steer", lambda model, setting, **how: steer(model, partial(setting), **how))
    monkeypatch.setattr(
        self_check_module,
        "RowSteering",
        lambda model, settings, known: RowSteering(model, list(map(partial, settings)), known),
    )
    with pytest.raises(
        SteeringError, match=r"self-check: circuit does not steer layer 1 .*got '0 correct calls and 1 wrong"
    ):
        checked(model, mode, circuit=whole)


def forgetful_fold(*given: Any) -> Callable[[], None]:
    fold_columns(*given)
    return lambda: None


def reversed_rows(self: RowSteering, rows: Sequence[int]) -> None:
    assign(self, list(reversed(rows)))


def half(setting: Setting, multiplier: float) -> Setting:
    return Setting(setting.intervention, 0.5)


assign = RowSteering.assign
FAULTS: dict[str, tuple[RunMode, Any, str, Any, str]] = {
    "columns stay": ("fold", apply_module, "fold_columns", forgetful_fold, "leaves a changed model"),
    "hooks stay": ("rows", RowSteering, "__exit__", lambda *_: None, "rows of the batch|leaves a changed model"),
    # `apply` leaves the baseline alone, so here the check steers with another setting that it takes for m = 1.
    "m = 1 does something": ("hook", self_check_module, "replace", half, "m = 1 is not the .*; got 'a logit off by"),
    "rows are mixed up": ("rows", RowSteering, "assign", reversed_rows, "m = 1 is not the untouched model"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_steering_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, where, name, wrong, message = FAULTS[case]
    model = tiny("llama")
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(SteeringError, match=message):
        checked(model, mode, circuit=circuit(find_architecture(model)))


@pytest.mark.parametrize("mode", MODES)
def test_a_circuit_without_effect_is_refused_and_a_control_is_not(mode: RunMode) -> None:
    model = tiny("llama")
    architecture = find_architecture(model)
    dead = circuit(architecture)
    with torch.no_grad():
        for projection, neurons in ((architecture.projections[key], n) for key, n in dead.by_projection().items()):
            weight = projection.weight
            assert weight is not None
            weight[:, neurons] = 0
    with pytest.raises(SteeringError, match=f"self-check: circuit at m = 0 changes no logit on {MORE_PROMPTS} prompts"):
        checked(model, mode, circuit=dead)
    found = checked(model, mode, control=with_method(dead, "random")).interventions["control"]
    assert (found.change, found.prompts) == (0, MORE_PROMPTS)


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(SteeringError, match="the untouched model's logits are not finite"):
        checked(model, "hook", circuit=circuit(find_architecture(model)))


def test_a_module_that_runs_twice_is_counted_twice() -> None:
    """As in a model whose layers share their MLP."""
    linear = torch.nn.Linear(2, 2)
    check = ModuleCheck(0, linear, "input", torch.equal)
    with check.before_steering(), check.after_steering():
        linear(torch.ones(1, 2))
        linear(torch.ones(1, 2))
    assert (check.correct, check.wrong) == (2, 0)
