"""The quantizers that run on a CPU: how to load a checkpoint with each, and the same model with plain weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn


@dataclass(frozen=True)
class Format:
    """One way to pack weights.

    Attributes:
        library: what has to be installed.
        config: makes transformers' configuration.
        tolerance: how far logits may be from those of the dequantized model, whose own are of the order of 3.
        why: what the tolerance is for.
    """

    library: str
    config: Callable[[], Any]
    tolerance: float
    why: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return tf.TorchAoConfig(Int8WeightOnlyConfig())


FORMATS = {
    "bitsandbytes-4bit": Format(
        "bitsandbytes",
        lambda: tf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        1e-4,
        "weights are unpacked and multiplied in float32",
    ),
    "bitsandbytes-8bit": Format(
        "bitsandbytes",
        lambda: tf.BitsAndBytesConfig(load_in_8bit=True),
        0.25,
        "LLM.int8 rounds activations to 8 bits too, and picks outlier channels by batch",
    ),
    "torchao-int8": Format("torchao", _torchao, 1e-4, "scales are applied after a product in float32"),
}


def packed(weight: Any) -> bool:
    return type(weight) not in (nn.Parameter, torch.Tensor)


def dequantized(module: nn.Module) -> torch.Tensor:
    """A packed weight as numbers, by the quantizer's own rule."""
    weight: Any = module.weight
    match type(weight).__name__:
        case "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            return dequantize_4bit(weight.data, weight.quant_state)
        case "Int8Params":
            return weight.data.float() * weight.SCB.float().view(-1, 1) / 127
    return weight.dequantize()


def load(checkpoint: Path, name: str) -> tuple[tf.PreTrainedModel, tf.PreTrainedModel]:
    """A checkpoint quantized, and the model of plain weights that it stands for."""
    options = {"dtype": torch.float32, "device_map": {"": "cpu"}}
    quantized = tf.AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=FORMATS[name].config(), **options
    ).eval()
    plain = tf.AutoModelForCausalLM.from_pretrained(checkpoint, **options).eval()
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for path, module in quantized.named_modules():
            if isinstance(module, nn.Linear) and packed(module.weight):
                numbers = dequantized(module).reshape(module.out_features, module.in_features)
                # GPT-2's Conv1D, which bitsandbytes turns into a linear layer, holds its weight the other way round.
                modules[path].weight.copy_(numbers.T if type(modules[path]).__name__ == "Conv1D" else numbers)
    return quantized, plain
