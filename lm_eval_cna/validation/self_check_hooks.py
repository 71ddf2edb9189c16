"""Probes around what steering touches: whether it was reached, and whether exactly the named values were changed.

Hooks of a module run in the order in which they were registered: `before` is entered ahead of the steering and
keeps what it gets, `behind` is entered after it and looks at what it makes of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.projection import Projection, weight_columns

#: From what a module was given or returned before the steering, and behind it, to whether the steering is right.
Check = Callable[[torch.Tensor, torch.Tensor], bool]


@dataclass
class HookCheck:
    """One touched module."""

    layer: int
    """The layer it belongs to."""
    module: nn.Module
    """What is called."""
    side: Literal["input", "output"]
    """Where the steering shows."""
    check: Check
    """Whether it is right."""
    right: int = 0
    wrong: int = 0
    """Calls in which it was, and in which it was not."""
    _before: Any = None

    @contextmanager
    def before(self) -> Iterator[None]:
        """Keep what the steering gets."""

        def keep(tensor: Any) -> None:
            self._before = tensor.clone() if _is_plain(tensor) else None  # some families go on in place

        with self._watching(keep):
            yield

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Look at what the steering makes of it."""

        def look(tensor: Any) -> None:
            # Tensors that are spread over processes are only counted.
            if self._before is None or not _is_plain(tensor) or self.check(self._before, tensor):
                self.right += 1
            else:
                self.wrong += 1
            self._before = None

        with self._watching(look):
            yield

    @contextmanager
    def _watching(self, see: Callable[[Any], None]) -> Iterator[None]:
        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(args[0] if args else next(iter(kwargs.values()), None))

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            see(output[0] if isinstance(output, tuple) else output)

        handle: torch.utils.hooks.RemovableHandle
        if self.side == "output":
            handle = self.module.register_forward_hook(on_output)
        else:
            handle = self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def hook_checks_of(architecture: Architecture, setting: Setting, mode: str, rows: slice) -> list[HookCheck]:
    """A probe for every module that a setting touches.

    Args:
        architecture: of the model, unsteered: columns are read from it.
        setting: not the baseline.
        mode: "fold", "hook" or "rows".
        rows: the batch rows that follow the setting; the others follow the baseline.
    """
    intervention = setting.intervention
    assert intervention is not None
    if isinstance(intervention, Vectors):
        touched = [architecture.layers[index] for index in intervention.layers]
        return [
            HookCheck(
                layer.index,
                layer.write if intervention.place == "write" else layer.block,
                "output",
                _added(intervention.tensors[layer.index] * setting.strength, rows),
            )
            for layer in touched
        ]
    found = []
    for key, neurons in intervention.by_projection().items():
        projection, chosen = architecture.projections[key], torch.tensor(neurons)
        if mode == "fold":
            check = _folded(projection, chosen, setting.multiplier)
        else:
            check = _reached if projection.is_routed else _scaled(projection, neurons, setting.multiplier, rows)
        found.append(HookCheck(projection.layer, projection.down, "input", check))
    return found


def _added(vector: torch.Tensor, rows: slice) -> Check:
    def check(before: torch.Tensor, behind: torch.Tensor) -> bool:
        before[rows] += vector.to(device=before.device, dtype=before.dtype)
        return torch.equal(before, behind)

    return check


def _scaled(projection: Projection, neurons: list[int], multiplier: float, rows: slice) -> Check:
    def check(before: torch.Tensor, behind: torch.Tensor) -> bool:
        held = projection.channels(before)
        before[rows, ..., [neuron - held.start for neuron in neurons if neuron in held]] *= multiplier
        return torch.equal(before, behind)

    return check


def _folded(projection: Projection, neurons: torch.Tensor, multiplier: float) -> Check:
    columns = weight_columns(projection, neurons)
    wanted = None if columns is None else columns * multiplier

    def check(before: torch.Tensor, behind: torch.Tensor) -> bool:
        columns = weight_columns(projection, neurons)
        scaled = wanted is None or columns is None or torch.equal(columns, wanted)
        return scaled and torch.equal(before, behind)

    return check


def _reached(before: torch.Tensor, behind: torch.Tensor) -> bool:
    """Inputs of routed experts exist only inside their module: that it was called is what can be seen."""
    return True


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is torch.Tensor
