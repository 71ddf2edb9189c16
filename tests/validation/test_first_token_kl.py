"""harmless_kl against a slow version: one prompt at a time, all logits, the sum written out in Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lm_eval_cna.errors import CNAError, ConfigError, SteeringError
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.resources import harmless_prompts
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.prompts import Rendering, render_prompts
from lm_eval_cna.validation.first_token_kl import Divergence, harmless_kl, kl_divergence
from tests.helpers.checkpoints import save_llama
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, left_unchanged, letters, tiny

PROMPTS = ("a", "Of several lengths, so that batches need padding.", "How so?", "Why, and for how long?", "ok")


LETTERS = letters()
LETTERS.chat_template = None


def slow_log_probs(model: Any, text: str) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([LETTERS(text)["input_ids"]])).logits[0, -1].tolist()
    highest = max(logits)
    total = math.log(math.fsum(math.exp(value - highest) for value in logits)) + highest
    return [value - total for value in logits]


def slow_kl(model: Any, setting: Setting, text: str) -> float:
    before = slow_log_probs(model, text)
    with steer(model, setting):
        after = slow_log_probs(model, text)
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("family", DENSE)
def test_equals_the_slow_version(family: str) -> None:
    # transformers' eager attention, Gemma 2's default, turns float64's mask value into infinity and padding into NaN.
    dtype, rel = (torch.float32, 1e-3) if family == "gemma2" else (torch.float64, 1e-6)
    model = tiny(family, dtype=dtype)
    architecture = find_architecture(model)
    chosen, added = circuit(architecture, per_layer=8), vectors(architecture)
    settings = [Setting(chosen, 0.0), Setting(chosen, 1.0), Setting(chosen, 2.0), Setting(added, 2.0)]
    found = harmless_kl(model, LETTERS, settings, PROMPTS, batch_size=2)
    assert len(found) == len(settings)
    for setting, divergence in zip(settings, found, strict=True):
        expected = [slow_kl(model, setting, text) for text in PROMPTS]
        assert divergence.values == pytest.approx(expected, rel=rel, abs=1e-12)
        assert divergence.mean == pytest.approx(math.fsum(expected) / len(expected), rel=rel)
        assert None not in divergence.values
        if setting.multiplier != 1.0:
            assert min(expected) > 1e-6, "the comparison would be with nothing"
    assert set(found[1].values) == {0.0} and found[1].mean == found[1].p95 == 0.0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_setting_that_changes_nothing_has_a_kl_of_exactly_zero(family: str) -> None:
    # Not the short cut for m = 1: vectors of strength 0 go through steering and the model.
    model = tiny(family).train()  # GPT-2's configuration has dropout 0.1, which must be off
    added = vectors(find_architecture(model))
    with left_unchanged(model):
        (found,) = harmless_kl(model, LETTERS, [Setting(added, 0.0, scale=0.0)], PROMPTS, batch_size=2)
    assert found == Divergence((0.0,) * len(PROMPTS), 0.0, 0.0)
    assert all(module.training for module in model.modules())


def test_percentile_by_hand() -> None:
    # Three prompts: 95 % of the way from the first to the third lies 0.9 of the way from the second to the third.
    model = tiny("llama")
    (found,) = harmless_kl(model, LETTERS, [Setting(circuit(find_architecture(model)), 0.0)], PROMPTS[:3])
    _, middle, largest = sorted(value for value in found.values if value is not None)
    assert found.p95 == pytest.approx(middle + 0.9 * (largest - middle))
    (whole,) = harmless_kl(model, LETTERS, [Setting(circuit(find_architecture(model)), 0.0)])
    assert len(whole.values) == len(harmless_prompts()) >= 40, "the packaged prompts are the default"


def test_kl_by_hand() -> None:
    half, quarter, three = math.log(0.5), math.log(0.25), math.log(0.75)
    p = torch.tensor([[half, half], [0.0, -torch.inf], [half, half], [0.0, -torch.inf]], dtype=torch.float64)
    q = torch.tensor([[quarter, three], [half, half], [0.0, -torch.inf], [torch.nan] * 2], dtype=torch.float64)
    first, second, third, fourth = kl_divergence(p, q).tolist()
    assert first == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert second == pytest.approx(math.log(2))
    assert third == math.inf and math.isnan(fourth)
    assert float(kl_divergence(p[0], p[0] - 1e-17)) >= 0.0


def test_the_last_position_alone_is_computed_and_the_baseline_runs_once() -> None:
    model = tiny("llama")
    chosen = circuit(find_architecture(model))
    seen: list[torch.Size] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    told: list[tuple[int, int]] = []
    settings = [Setting(chosen, 0.0), Setting(), Setting(chosen, 1.0), Setting(chosen, 2.0)]
    harmless_kl(
        model,
        LETTERS,
        settings,
        PROMPTS,
        batch_size=3,
        progress=lambda stage, done, total, detail="": told.append((done, total)),
    )
    assert seen == [(3, 1, 32), (2, 1, 32)] * 3, "the untouched model and two settings"
    assert told == [(0, 2), (1, 2)]


def test_a_broken_model_is_not_averaged_away() -> None:
    model = tiny("llama")
    added = vectors(find_architecture(model))
    broken = added.model_copy(update={"tensors": {layer: v * 1e38 for layer, v in added.tensors.items()}})
    broken_kl, sound = harmless_kl(model, LETTERS, [Setting(broken, 100.0), Setting(added, 1.5)], PROMPTS)
    assert broken_kl == Divergence((None,) * len(PROMPTS), None, None)
    assert sound.mean is not None and sound.mean > 0


def test_errors() -> None:
    model = tiny("llama")
    setting = Setting(circuit(find_architecture(model)), 0.0)
    with pytest.raises(ConfigError, match="no prompt"):
        harmless_kl(model, LETTERS, [setting], ())
    with pytest.raises(ConfigError, match="batch size"):
        harmless_kl(model, LETTERS, [setting], PROMPTS, batch_size=0)
    with steer(model, setting), pytest.raises(SteeringError, match="steered already"):
        harmless_kl(model, LETTERS, [Setting()], PROMPTS)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = torch.nan
    with pytest.raises(CNAError, match="untouched model's logits"):
        harmless_kl(model, LETTERS, [setting], PROMPTS)


def test_prompts_are_rendered_as_the_evaluation_renders_them(tmp_path: Path) -> None:
    lm = CNAHFLM(pretrained=str(save_llama(tmp_path)), device="cpu")
    setting = Setting(circuit(lm.architecture, per_layer=16), 0.0)
    found = [
        harmless_kl(lm.model, lm.tokenizer, [setting], PROMPTS, rendering=Rendering(chat_template=chat))[0]
        for chat in (True, False)
    ]
    assert found[0] != found[1]
    chats = render_prompts(PROMPTS, lm.tokenizer)
    assert chats[0] == "<|user|>a<|end|><|assistant|>"
    plain = Rendering(chat_template=False)
    assert found[0] == harmless_kl(lm.model, lm.tokenizer, [setting], chats, rendering=plain)[0]
