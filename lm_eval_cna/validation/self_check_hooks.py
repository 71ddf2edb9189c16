"""Checks of single modules: was each one that steering touches reached, and were exactly the named values changed?

A module's hooks run in the order in which they were registered, so a `ModuleCheck` registers one hook before the
steering's and one after it, and compares what they see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.hooks import local_neurons
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.forward import hidden_states
from lm_eval_cna.transformer.projection import Projection, weight_columns

#: Given a tensor before and after steering, whether steering did what it should. It may edit the first.
Check = Callable[[torch.Tensor, torch.Tensor], bool]


@dataclass
class ModuleCheck:
    """Counts the calls of one module in which steering did what it should."""

    layer: int
    """The layer that the module belongs to."""
    module: nn.Module
    """A module that steering touches."""
    side: Literal["input", "output"]
    """What steering changes: the module's input or its output."""
    is_correct: Check
    """Compares that tensor before and after steering."""
    correct: int = 0
    """Calls in which steering did what it should."""
    wrong: int = 0
    """Calls in which it did something else."""
    _before: Any = None

    @contextmanager
    def before_steering(self) -> Iterator[None]:
        """Keep a copy of the tensor. Enter this context before the model is steered."""

        def keep(tensor: Any) -> None:
            self._before = tensor.clone() if _is_plain(tensor) else None  # some families edit it in place later

        with self._watching(keep):
            yield

    @contextmanager
    def after_steering(self) -> Iterator[None]:
        """Compare the tensor with the copy. Enter this context when the model is steered."""

        def compare(tensor: Any) -> None:
            # A tensor that is cut over processes cannot be compared here; its calls are counted as correct.
            if self._before is None or not _is_plain(tensor) or self.is_correct(self._before, tensor):
                self.correct += 1
            else:
                self.wrong += 1
            self._before = None

        with self._watching(compare):
            yield

    @contextmanager
    def _watching(self, see: Callable[[Any], None]) -> Iterator[None]:
        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(args[0] if args else next(iter(kwargs.values()), None))

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            see(hidden_states(output))

        handle: torch.utils.hooks.RemovableHandle
        if self.side == "output":
            handle = self.module.register_forward_hook(on_output)
        else:
            handle = self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def module_checks(architecture: Architecture, setting: Setting, mode: str, rows: slice) -> list[ModuleCheck]:
    """A check for every module that a setting, which is not the baseline, touches.

    It reads weight columns, so the model must not be steered yet. The batch rows outside `rows` follow the baseline.
    """
    intervention = setting.intervention
    assert intervention is not None
    checks = []
    if isinstance(intervention, Vectors):
        for index, vector in intervention.tensors.items():
            layer = architecture.layers[index]
            module = layer.write if intervention.place == "write" else layer.block
            checks.append(ModuleCheck(index, module, "output", _added(vector * setting.strength, rows)))
        return checks
    for key, neurons in intervention.by_projection().items():
        projection = architecture.projections[key]
        if mode == "fold":
            is_correct = _folded(projection, torch.tensor(neurons), setting.multiplier)
        elif projection.is_routed:
            is_correct = _called
        else:
            is_correct = _scaled(projection, neurons, setting.multiplier, rows)
        checks.append(ModuleCheck(projection.layer, projection.down, "input", is_correct))
    return checks


def _added(vector: torch.Tensor, rows: slice) -> Check:
    def is_correct(before: torch.Tensor, after: torch.Tensor) -> bool:
        before[rows] += vector.to(device=before.device, dtype=before.dtype)
        return torch.equal(before, after)

    return is_correct


def _scaled(projection: Projection, neurons: list[int], multiplier: float, rows: slice) -> Check:
    def is_correct(before: torch.Tensor, after: torch.Tensor) -> bool:
        before[rows, ..., local_neurons(neurons, projection.channels(before))] *= multiplier
        return torch.equal(before, after)

    return is_correct


def _folded(projection: Projection, neurons: torch.Tensor, multiplier: float) -> Check:
    columns = weight_columns(projection, neurons)
    wanted = None if columns is None else columns * multiplier

    def is_correct(before: torch.Tensor, after: torch.Tensor) -> bool:
        columns = weight_columns(projection, neurons)
        scaled = wanted is None or columns is None or torch.equal(columns, wanted)
        return scaled and torch.equal(before, after)

    return is_correct


def _called(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Routed experts' inputs exist only inside their module, so only the call itself can be seen."""
    return True


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is torch.Tensor
