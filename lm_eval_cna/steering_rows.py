"""Rows: one setting per batch row, so that one batch carries several cells of a sweep.

Floor 2. The same arithmetic as the hook mode: a row's activations are multiplied with its own factors (exactly 1
for neurons that are not in its circuit), a row's vector is added to its own hidden states (zeros for circuits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lm_eval_cna.architecture import Architecture, find_architecture
from lm_eval_cna.errors import SteeringError
from lm_eval_cna.fit import check_fit
from lm_eval_cna.intervention import Circuit, Vectors
from lm_eval_cna.steering import Setting, mark_steered, refuse_nesting, unmark_steered


class RowSteering:
    """A model whose batch rows follow different settings. A context manager; `undo` removes the hooks.

    Call `assign` before every forward pass whose batch has other rows than the last one.

    Args:
        model: a transformers model.
        settings: the settings that rows can be given, by position.
        architecture: of `model`, where it is known already.

    Raises:
        InterventionError: a setting's intervention does not fit the model.
        SteeringError: the model is steered already.
    """

    def __init__(self, model: nn.Module, settings: Sequence[Setting], architecture: Architecture | None = None) -> None:
        self._architecture = architecture or find_architecture(model)
        refuse_nesting(self._architecture)
        for setting in settings:
            if setting.intervention is not None:
                check_fit(setting.intervention, self._architecture)
        self._settings = tuple(settings)
        self._rows: tuple[int, ...] = ()
        self._operands: dict[nn.Module, torch.Tensor] = {}
        self._handles = [self._hook(module, kind) for module, kind in self._touched()]
        mark_steered(self._architecture)

    def __enter__(self) -> RowSteering:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Remove the hooks. Safe to call twice."""
        while self._handles:
            self._handles.pop().remove()
        unmark_steered(self._architecture)

    def assign(self, rows: Sequence[int]) -> None:
        """Say which setting each row of the next batches follows.

        Args:
            rows: for each batch row the position of its setting.
        """
        if tuple(rows) != self._rows:
            self._rows = tuple(rows)
            self._operands.clear()

    def _touched(self) -> list[tuple[nn.Module, str]]:
        """The modules that some setting touches, with the kind of operand each takes."""
        found: dict[nn.Module, str] = {}
        for setting in self._settings:
            if setting.is_baseline or setting.intervention is None:
                continue
            for index in setting.intervention.layers:
                layer = self._architecture.layers[index]
                if isinstance(setting.intervention, Circuit):
                    found[layer.down] = "factors"
                else:
                    found[layer.write if setting.intervention.place == "write" else layer.block] = "vectors"
        return list(found.items())

    def _hook(self, module: nn.Module, kind: str) -> torch.utils.hooks.RemovableHandle:
        if kind == "factors":

            def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                return (args[0] * self._operand(module, args[0], self._factors), *args[1:])

            return module.register_forward_pre_hook(scale)

        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            steered = hidden + self._operand(module, hidden, self._vectors)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return module.register_forward_hook(add)

    def _operand(
        self, module: nn.Module, x: torch.Tensor, build: Callable[[nn.Module, int], torch.Tensor]
    ) -> torch.Tensor:
        """The operand [rows, 1, channels] of a module for the rows at hand, made once per assignment."""
        if len(self._rows) != x.shape[0]:
            raise SteeringError(
                "rows of the batch", got=x.shape[0], allowed=f"the {len(self._rows)} that were assigned"
            )
        operand = self._operands.get(module)
        if operand is None:
            operand = build(module, x.shape[-1]).to(device=x.device, dtype=x.dtype).unsqueeze(1)
            self._operands[module] = operand
        return operand

    def _factors(self, module: nn.Module, channels: int) -> torch.Tensor:
        factors = torch.ones(len(self._rows), channels)
        for row, setting in self._active():
            if isinstance(setting.intervention, Circuit):
                for layer, indices in setting.intervention.by_layer().items():
                    if self._architecture.layers[layer].down is module:
                        factors[row, indices] = setting.multiplier
        return factors

    def _vectors(self, module: nn.Module, channels: int) -> torch.Tensor:
        vectors = torch.zeros(len(self._rows), channels)
        for row, setting in self._active():
            if isinstance(setting.intervention, Vectors):
                for index, tensor in setting.intervention.tensors.items():
                    layer = self._architecture.layers[index]
                    if (layer.write if setting.intervention.place == "write" else layer.block) is module:
                        vectors[row] = tensor.float().cpu() * setting.strength
        return vectors

    def _active(self) -> list[tuple[int, Setting]]:
        """Batch rows that are steered, with their settings."""
        chosen = ((row, self._settings[position]) for row, position in enumerate(self._rows))
        return [(row, setting) for row, setting in chosen if not setting.is_baseline]
