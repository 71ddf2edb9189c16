"""Arguments of cna-hf that are refused before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.models.arguments import (
    check_batch_size,
    check_device,
    check_dtype,
    check_engine_arguments,
    naming_the_model,
)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_here(device: str) -> None:
    assert check_device(device) == device
    assert check_device(torch.device(device)) == device


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["abacus", "cuda:2", "mps", "meta", "cpu:x", 0])
def test_a_device_that_is_not_here(device: Any) -> None:
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda, cuda:0, cuda:1 on this machine"):
        check_device(device)


def test_hflm_is_given_the_spelling_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert check_device("xpu") == check_device("xpu:0") == "xpu:0"
    assert check_device("cpu:0") == "cpu"


@pytest.mark.parametrize(
    ("check", "good", "bad", "says"),
    [
        (
            check_dtype,
            ["auto", None, "bfloat16", torch.float32],
            ["int3", "int8", "nn", 16, torch.int64],
            r"dtype; got .*bfloat16",
        ),
        (check_batch_size, [1, "8", "auto", "auto:4"], [0, -1, "x", "auto:", "auto:x", 1.5, None, True], "batch_size"),
    ],
)
def test_dtypes_and_batch_sizes(check: Any, good: list[Any], bad: list[Any], says: str) -> None:
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(ConfigError, match=says):
            check(value)


def test_only_errors_of_the_users_making_are_turned() -> None:
    with pytest.raises(ConfigError, match="got 'a/b'"), naming_the_model("a/b"):
        raise OSError("the hub cannot be reached")
    with pytest.raises(ConfigError, match="'colour'"), naming_the_model("a/b"):
        raise TypeError("__init__() got an unexpected keyword argument 'colour'")
    with pytest.raises(TypeError, match="a bug"), naming_the_model("a/b"):
        raise TypeError("a bug")


@pytest.mark.parametrize(
    "arguments",
    [
        {"data_parallel_size": 2},
        {"data_parallel_size": "8"},
        {"worker_extension_cls": "a.B"},
        {"worker_cls": "a.B"},
        {"kv_transfer_config": {"kv_connector": "x"}},
    ],
)
def test_arguments_under_which_something_unsteered_would_answer(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        check_engine_arguments(arguments)


def test_other_arguments_of_the_engine() -> None:
    check_engine_arguments({"data_parallel_size": "1", "tensor_parallel_size": 4, "worker_cls": None})
