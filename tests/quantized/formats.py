"""The quantizers that run on a CPU: how to load a checkpoint with each, and the same model with plain weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn


@dataclass(frozen=True)
class Format:
    """One way to pack weights."""

    library: str
    config: Callable[[], Any]
    """Makes the configuration that transformers takes."""
    allowed: Callable[[], float]
    """How far logits may be from the dequantized model's, which are of the order of 5."""
    times: int = 1
    """How many times as wide as usual a model has to be."""

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None


@cache
def _four_bits() -> float:
    """Float32's rounding; bfloat16's where bitsandbytes multiplies in bfloat16, whatever it was asked for.

    It does so on CPUs with AVX512-BF16, for which it packs a weight again at the first call. A plain layer of its own
    tells, without any code of ours.
    """
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit

    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu").eval()
    numbers = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return 1e-4 if torch.allclose(layer(x), x @ numbers.T, atol=1e-5) else 0.25


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return tf.TorchAoConfig(Int8WeightOnlyConfig())


FORMATS = {
    "bitsandbytes-4bit": Format(
        "bitsandbytes",
        lambda: tf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        _four_bits,
        times=4,  # bitsandbytes cannot pack a weight again where a row is no multiple of its 64 numbers
    ),
    "bitsandbytes-8bit": Format(
        "bitsandbytes",
        lambda: tf.BitsAndBytesConfig(load_in_8bit=True),
        lambda: 0.25,  # LLM.int8 rounds activations to 8 bits too, and picks outlier channels by batch
    ),
    "torchao-int8": Format("torchao", _torchao, lambda: 1e-4),
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
