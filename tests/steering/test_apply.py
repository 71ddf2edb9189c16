"""fold, hook and rows agree; undo is bit-exact; what must be refused is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lm_eval_cna.errors import InterventionError, SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.steering import apply as apply_module
from lm_eval_cna.steering.apply import apply, steer
from lm_eval_cna.steering.fold import fold_columns
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.neurons import Neuron
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, left_unchanged, logits, prompts, tiny

MULTIPLIERS = (0.0, 0.25, 1.0, 1.5, 2.0, -1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "mode"),
    [*product(("llama", "gpt2"), ("fold", "hook")), *product(("qwen2_moe", "gpt_oss"), ("fold",))],
)
def test_undo_is_bit_exact(family: str, mode: Mode, dtype: torch.dtype) -> None:
    model = tiny(family, dtype=dtype)
    chosen = circuit(find_architecture(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for multiplier in MULTIPLIERS:
        with left_unchanged(model), steer(model, Setting(chosen, multiplier), mode=mode):
            changed = any(not torch.equal(model.state_dict()[n], t) for n, t in before.items())
            assert changed == (mode == "fold" and multiplier != 1.0)
    with left_unchanged(model):
        with pytest.raises(ZeroDivisionError), steer(model, Setting(chosen, 0.0), mode=mode):
            _ = 1 / 0
        twice = apply(model, Setting(chosen, 2.0), mode=mode)
        twice.undo()
        twice.undo()


def test_nesting_is_refused_and_leaves_the_first_in_place() -> None:
    model = tiny("llama")
    architecture = find_architecture(model)
    chosen, ids = circuit(architecture), prompts()
    with left_unchanged(model), steer(model, Setting(chosen, 0.0)):
        steered = logits(model, ids)
        for setting in (Setting(chosen, 2.0), Setting(vectors(architecture), 0.0)):
            with pytest.raises(SteeringError, match="steered already"):
                apply(model, setting)
        with pytest.raises(SteeringError, match="steered already"):
            RowSteering(model, [Setting(chosen, 2.0)])
        assert torch.equal(logits(model, ids), steered)


@pytest.mark.parametrize("family", DENSE)
def test_the_three_ways_agree(family: str) -> None:
    model = tiny(family)
    architecture = find_architecture(model)
    chosen, ids = circuit(architecture), prompts()
    settings = [Setting(chosen, m) for m in (0.0, 0.25, 1.0, 1.5, -1.0)]
    wanted, texts = [], []
    for setting in settings:
        with steer(model, setting, mode="fold"):
            wanted.append(logits(model, ids))
            texts.append(greedy(model, ids))
        with steer(model, setting, mode="hook"):
            assert torch.allclose(logits(model, ids), wanted[-1], atol=1e-5, rtol=0)
            assert torch.equal(greedy(model, ids), texts[-1])
    with RowSteering(model, settings) as rows:
        positions = [position for position in range(len(settings)) for _ in range(len(ids))]
        rows.assign(positions)
        batch = ids.repeat(len(settings), 1)
        assert torch.allclose(logits(model, batch), torch.cat(wanted), atol=1e-5, rtol=0)
        assert torch.equal(greedy(model, batch), torch.cat(texts))
        shuffled = list(reversed(positions))
        rows.assign(shuffled)
        assert torch.allclose(logits(model, batch.flip(0)), torch.cat(wanted).flip(0), atol=1e-5, rtol=0)


def greedy(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "falcon"])
def test_the_residual_write_grows_in_proportion(family: str) -> None:
    """At layer 0 the residual stream moves by exactly (m - 1) * scale * v, whatever norm stands before it."""
    model = tiny(family)
    architecture = find_architecture(model)
    directions, ids = vectors(architecture), prompts()
    block = architecture.layers[0].block

    def residual(setting: Setting) -> torch.Tensor:
        seen = []
        handle = block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        with steer(model, setting):
            logits(model, ids)
        handle.remove()
        return seen[0]

    base = residual(Setting())
    for multiplier, scale in ((0.0, 1.0), (0.5, 1.0), (2.0, 1.0), (3.0, 0.5)):
        moved = residual(Setting(directions, multiplier, scale)) - base
        expected = (multiplier - 1) * scale * directions.tensors[0]
        assert torch.allclose(moved, expected.expand_as(moved), atol=1e-4), (multiplier, scale)


@pytest.mark.parametrize("place", ["write", "block"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "falcon", "gpt2"])
def test_vector_rows_equal_vector_hooks(family: str, place: str) -> None:
    model = tiny(family)
    architecture = find_architecture(model)
    directions, chosen, ids = vectors(architecture, place=place), circuit(architecture), prompts()
    settings = [Setting(directions, 0.0), Setting(), Setting(chosen, 0.0), Setting(directions, 2.0, 0.5)]
    wanted = []
    for setting in settings:
        with steer(model, setting):
            wanted.append(logits(model, ids))
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-3)
    with left_unchanged(model), RowSteering(model, settings) as rows:
        rows.assign([position for position in range(len(settings)) for _ in range(len(ids))])
        assert torch.allclose(logits(model, ids.repeat(len(settings), 1)), torch.cat(wanted), atol=1e-5, rtol=0)


def test_baselines_touch_nothing() -> None:
    model = tiny("llama")
    architecture = find_architecture(model)
    for setting in (Setting(), Setting(circuit(architecture), 1.0), Setting(vectors(architecture), 1.0)):
        with steer(model, setting) as steering:
            assert steering.mode == "none" and steering.layers == ()
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_rows_need_an_assignment_of_the_batch_size() -> None:
    model = tiny("llama")
    chosen = circuit(find_architecture(model))
    with RowSteering(model, [Setting(chosen, 0.0)]) as rows:
        rows.assign([0])
        with pytest.raises(SteeringError, match="got 3; allowed: the 1 that were assigned"):
            logits(model, prompts(batch=3))


def with_an_adapter(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["down_proj"], r=2))


def with_shared_storage(model: Any) -> Any:
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[2].mlp.down_proj.weight
    return model


@pytest.mark.parametrize(
    ("change", "why"), [(with_an_adapter, "carries an adapter"), (with_shared_storage, "shares its storage")]
)
def test_auto_folds_plain_weights_and_hooks_the_rest(change: Callable[[Any], Any], why: str) -> None:
    model = tiny("llama")
    chosen = circuit(find_architecture(model))
    with steer(model, Setting(chosen, 0.0)) as steering:
        assert steering.mode == "fold"
    changed = change(model)
    with steer(changed, Setting(chosen, 0.0)) as steering:
        assert steering.mode == "hook"
    with pytest.raises(SteeringError, match=why):
        apply(changed, Setting(chosen, 0.0), mode="fold")


@pytest.mark.parametrize("multiplier", [float("nan"), float("inf")])
def test_multipliers_are_finite(multiplier: float) -> None:
    with pytest.raises(SteeringError, match="finite"):
        Setting(None, multiplier)


def test_what_does_not_fit_and_impossible_modes_are_refused() -> None:
    model = tiny("llama")
    architecture = find_architecture(model)
    with pytest.raises(InterventionError, match="names neuron 0 of layer 7"):
        apply(model, Setting(Circuit(method="cna", name="outside", neurons=(Neuron(7, 0, 1.0),)), 0.0))
    with pytest.raises(SteeringError, match="vectors cannot be folded"):
        apply(model, Setting(vectors(architecture), 0.0), mode="fold")
    with pytest.raises(SteeringError, match="allowed: auto, fold, hook"):
        apply(model, Setting(circuit(architecture), 0.0), mode="magic")  # type: ignore[arg-type]


def test_a_half_applied_steering_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    chosen, calls = circuit(find_architecture(model)), []

    def failing(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return fold_columns(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(apply_module, "fold_columns", failing)
    with left_unchanged(model), pytest.raises(RuntimeError, match="out of memory"):
        apply(model, Setting(chosen, 0.0), mode="fold")
    monkeypatch.undo()
    with steer(model, Setting(chosen, 0.0)) as steering:
        assert steering.mode == "fold" and steering.layers == (0, 1, 2), "the model counts as unsteered"
