"""Checks the arguments of cna-hf and cna-vllm before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from lm_eval_cna.errors import ConfigError

_BATCH_SIZE = re.compile(r"[1-9]\d*|auto(:[1-9]\d*)?", re.ASCII)


def finite_number(name: str, value: float | str) -> float:
    """Read a number, which lm-eval may pass as text.

    Raises:
        ConfigError: it is not a number, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise ConfigError(name, got=value, allowed="a finite number")
    return number


def check_device(device: Any) -> str:
    """Check a device and spell it as HFLM does, which silently replaces one that it does not know.

    Args:
        device: a device of this machine in any spelling of torch; None or "auto" for the best one.

    Raises:
        ConfigError: torch does not know the device, or this machine does not have it.
    """
    if device in (None, "", "auto"):
        return _default_device()
    try:
        asked = torch.device(str(device))
    except RuntimeError as error:
        raise _no_such(device) from error
    if asked.type == "cpu":
        return "cpu"
    if str(asked) not in _accelerators():
        raise _no_such(device)
    # HFLM knows accelerators of other kinds by number only.
    return str(asked) if ":" in str(asked) or asked.type in ("cuda", "mps") else f"{asked.type}:0"


def check_dtype(dtype: Any) -> None:
    """Refuse a precision that torch does not have.

    Raises:
        ConfigError: it is neither "auto" nor one of torch's floating-point types.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConfigError("dtype", got=dtype, allowed="auto, float32, float16, bfloat16")


def check_batch_size(batch_size: Any) -> None:
    """Refuse a batch size that HFLM cannot read.

    Raises:
        ConfigError: it is not a whole number from 1, "auto" or "auto:N".
    """
    if not _BATCH_SIZE.fullmatch(str(batch_size)):
        raise ConfigError("batch_size", got=batch_size, allowed="a whole number from 1, auto, or auto:N")


def check_engine_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments of vLLM with which an unsteered engine or cache could answer.

    Raises:
        ConfigError: for data parallelism, another worker extension, or a key-value cache outside the engine.
    """
    if str(given.get("data_parallel_size", 1)) != "1":
        raise ConfigError(
            "data_parallel_size: lm-eval would start engines that no steering reaches",
            got=given["data_parallel_size"],
            allowed="1",
            do="give the GPUs to one engine with tensor_parallel_size, or start one run for each of them",
        )
    for name in ("worker_extension_cls", "worker_cls"):
        if given.get(name):
            raise ConfigError(f"{name}: the workers are ours to extend", got=given[name])
    if given.get("kv_transfer_config"):
        raise ConfigError("kv_transfer_config: keys and values kept elsewhere would be another multiplier's")


@contextmanager
def naming_the_model(pretrained: Any) -> Iterator[None]:
    """Name the model in the error when transformers cannot load it.

    Raises:
        ConfigError: instead of the OSError, ValueError, TypeError or ImportError that transformers raises.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:  # no such model, or files that are not one
        raise ConfigError(
            f"cannot load the model: {error}",
            got=pretrained if isinstance(pretrained, str) else type(pretrained).__name__,
            do="give a name on the hub or a path",
        ) from error
    except ImportError as error:  # a quantizer's library
        raise ConfigError(f"cannot load the model: {error}", got=pretrained) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"an argument that neither lm-eval nor the model knows: {error}") from error


def _no_such(device: Any) -> ConfigError:
    here = ", ".join(["auto", "cpu", *_accelerators()])
    return ConfigError("device", got=device, allowed=f"{here} on this machine")


def _accelerators() -> list[str]:
    """This machine's accelerator in torch's names: without a number, and with each number."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return []
    return [kind.type, *(f"{kind.type}:{index}" for index in range(torch.accelerator.device_count()))]


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
