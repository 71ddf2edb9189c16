"""Prepare forward passes over prompts: the model's inputs, and dropout turned off."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def inputs_of(stack: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Arguments for a forward pass over prompts padded on the left, on the device of the model's first weights.

    `ids` and `mask` are [batch, tokens].
    """
    device = next((p.device for p in stack.parameters() if p.device.type != "meta"), torch.device("cpu"))
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if "position_ids" in inspect.signature(stack.forward).parameters:
        # Counted from the first real token, as `generate` does; learned positions (GPT-2) depend on this.
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).to(device)
    return inputs


def hidden_states(output: Any) -> Any:
    """The hidden states in a module's output; some decoder layers return them first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden_states(output: Any, hidden: torch.Tensor) -> Any:
    """A module's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, so that activations and KL are reproducible; on exit every module is as before."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
