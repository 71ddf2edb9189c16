"""Reads the quantization arguments of cna-hf.

They quantize a model while it is loaded; a checkpoint that was saved quantized needs none. lm-eval 0.4.13 documents
`load_in_4bit=True`, but passes it to model classes that no longer take it (transformers 5), and sets
`quantization_config` a second time. Both work here.
"""

from __future__ import annotations

from typing import Any

from lm_eval_cna.errors import ConfigError

_BITSANDBYTES = ("load_in_4bit", "load_in_8bit", "bnb_4bit_", "llm_int8_")


def quantization_asked_for(arguments: dict[str, Any]) -> Any:
    """Remove the quantization arguments and return a config of transformers; None if there are none.

    Args:
        arguments: the arguments that cna-hf passes on: `quantization_config` (a mapping, or a config) or those of
            `BitsAndBytesConfig`.

    Raises:
        ConfigError: both are given, a mapping names no method, or the method does not take what it holds.
    """
    given = arguments.pop("quantization_config", None)
    flags = {name: arguments.pop(name) for name in list(arguments) if name.startswith(_BITSANDBYTES)}
    if given is not None and flags:
        raise ConfigError("two quantizations", got=["quantization_config", *sorted(flags)], do="ask for one of them")
    if not flags and not isinstance(given, dict):
        return given
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoQuantizationConfig

    try:
        return BitsAndBytesConfig(**flags) if flags else AutoQuantizationConfig.from_dict(given)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ConfigError(f"quantization: {error}", got=flags or given) from error


def describe_quantization(model: Any) -> Any:
    """How the model is quantized, as plain data; None if it is not."""
    found: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    return found if found is None or isinstance(found, dict) else found.to_dict()
