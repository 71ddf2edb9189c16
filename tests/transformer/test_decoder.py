"""Every family we claim: neuron j at multiplier m equals scaling its column by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import nn

from lm_eval_cna.errors import ArchitectureError
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.neurons import NeuronLayout
from lm_eval_cna.transformer.projection import weight_columns
from tests.helpers.interventions import circuit
from tests.helpers.models import DENSE, SIZES, prompts, tiny


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("multiplier", [0.0, 0.5, 2.0, -1.0])
def test_steering_a_neuron_is_scaling_its_column(family: str, multiplier: float) -> None:
    model, by_hand = tiny(family), tiny(family)
    architecture = find_architecture(model)
    chosen = circuit(architecture)
    transposed = family == "gpt2"
    with torch.no_grad():
        for layer, block in zip(find_architecture(by_hand).layers, architecture.layers, strict=True):
            name = f"{layer.projections[0].name}.weight"
            weight = by_hand.get_parameter(name)
            for neuron in chosen.neurons:
                if neuron.layer == block.index:
                    column = weight[neuron.index] if transposed else weight[:, neuron.index]
                    column.mul_(multiplier)
    ids = prompts()
    expected, untouched = logits(by_hand, ids), logits(model, ids)
    assert (expected - untouched).abs().max() > 1e-3, "the circuit must matter for the test to mean anything"
    for mode in ("fold", "hook"):
        with steer(model, Setting(chosen, multiplier), mode=mode):  # type: ignore[arg-type]
            assert torch.allclose(logits(model, ids), expected, atol=1e-5, rtol=0), mode
    with RowSteering(model, [Setting(chosen, multiplier)]) as rows:
        rows.assign([0] * len(ids))
        assert torch.allclose(logits(model, ids), expected, atol=1e-5, rtol=0)
    assert torch.equal(logits(model, ids), untouched)


@pytest.mark.parametrize("family", DENSE)
def test_columns_have_the_residual_width(family: str) -> None:
    architecture = find_architecture(tiny(family))
    assert (architecture.layout, architecture.hidden) == (NeuronLayout.dense(3, 48), 32)
    post_norm = family in ("gemma2", "gemma3_text", "olmo2")
    assert architecture.layers[0].write_name.endswith("post_feedforward_layernorm") is post_norm
    (projection,) = architecture.layers[1].projections
    columns, weight = weight_columns(projection, torch.tensor([5, 7])), projection.weight
    assert columns.shape == (2, 32)
    assert torch.equal(columns[1], weight[7] if family == "gpt2" else weight[:, 7])


def with_adapter(target: str = "down_proj") -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(tiny("llama"), LoraConfig(target_modules=[target], r=4, init_lora_weights=False))
    return model.eval()


def test_under_a_peft_wrapper() -> None:
    model = with_adapter()
    architecture = find_architecture(model)
    assert architecture.name == "LlamaForCausalLM"
    assert architecture.layers[0].projections[0].has_adapter
    chosen, ids = circuit(architecture), prompts()
    # By hand: both the base weight's and the adapter's column see the scaled activation.
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for layer in find_architecture(by_hand).layers:
            indices = chosen.by_layer()[layer.index]
            (projection,) = layer.projections
            projection.weight[:, indices] *= 0.5
            projection.down.lora_A["default"].weight[:, indices] *= 0.5
    with steer(model, Setting(chosen, 0.5)) as steering:
        assert steering.mode == "hook"
        assert torch.allclose(logits(model, ids), logits(by_hand, ids), atol=1e-5, rtol=0)


def test_inside_a_multimodal_model() -> None:
    text = {k: v for k, v in SIZES.items() if k not in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        ),
        text_config=tf.LlamaConfig(**text),
    )
    torch.manual_seed(0)
    model = tf.LlavaForConditionalGeneration(config).eval()
    architecture = find_architecture(model)
    assert "vision" not in architecture.layers[0].projections[0].name
    assert len(architecture.layers) == 3
    ids = prompts()
    before = logits(model, ids)
    with steer(model, Setting(circuit(architecture), 0.0)):
        assert not torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: tiny("granitemoe"), r"GraniteMoeForCausalLM .*mixture-of-experts module .*GraniteMoe"),
        (lambda: nn.Linear(2, 2), r"in Linear .*model types .*llama"),
        (lambda: without_an_mlp(tiny("llama")), r"model\.layers\.1 .* found Identity without down_proj"),
        (
            lambda: nn.ModuleDict({"a": tiny("llama"), "b": tiny("qwen2")}),
            r"more than one decoder stack: a\.model, b\.model",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(made: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        find_architecture(made())


def without_an_mlp(model: nn.Module) -> nn.Module:
    model.model.layers[1].mlp = nn.Identity()
    return model
