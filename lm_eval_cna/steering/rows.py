"""Rows: one setting per batch row, so that one batch carries several cells of a sweep.

The same arithmetic as the hook mode: a row's activations are multiplied with its own factors (exactly 1
for neurons that are not in its circuit), a row's vector is added to its own hidden states (zeros for circuits).
Each module has one table with a line per setting; the operands of a batch are lines picked from it, so that a batch
whose rows change, as it does whenever a response is finished, costs one `index_select` a module.

A mixture-of-experts layer mixes the tokens of all rows before its projections see them, so a circuit with neurons in
one is refused (`why_not_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.steering.apply import mark_steered, refuse_nesting, unmark_steered
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.projection import Projection

Kind = Literal["factors", "vectors"]


def why_not_rows(setting: Setting, architecture: Architecture) -> str | None:
    """The reason why a row of a batch cannot follow a setting, or None."""
    if setting.is_baseline:
        return None
    if any(_rounds_rows_together(projection) for projection in architecture.projections.values()):
        return "LLM.int8 keeps channels in 16 bits by what any row of the batch holds (llm_int8_threshold above 0)"
    if not isinstance(setting.intervention, Circuit):
        return None
    mixed = next((index for index in setting.intervention.layers if architecture.layers[index].has_experts), None)
    if mixed is None:
        return None
    return f"layer {mixed} is a mixture of experts, which mixes the tokens of all rows before its down-projections"


def _rounds_rows_together(projection: Projection) -> bool:
    state = getattr(projection.base, "state", None)  # bitsandbytes' 8-bit layers have one
    return type(projection.weight).__name__ == "Int8Params" and getattr(state, "threshold", 0.0) > 0.0


@dataclass
class _Touched:
    """A module that some setting touches."""

    kind: Kind
    """Whether its input is multiplied or its output added to."""
    table: torch.Tensor
    """Factors or vectors [settings, channels]; placed where the module runs at its first call."""
    channels: Callable[[torch.Tensor], range] | None = field(default=None)
    """Of factors: which neurons the module's input holds."""
    operand: torch.Tensor | None = field(default=None)
    """The lines of the batch at hand [rows, 1, channels], or None after an assignment."""


class RowSteering:
    """A model whose batch rows follow different settings. A context manager; `undo` removes the hooks.

    Call `assign` before every forward pass whose batch has other rows than the last one.

    Args:
        model: a transformers model.
        settings: the settings that rows can be given, by position.
        architecture: of `model`, where it is known already.

    Raises:
        InterventionError: a setting's intervention does not fit the model.
        SteeringError: the model is steered already, or a row cannot follow a setting.
    """

    def __init__(self, model: nn.Module, settings: Sequence[Setting], architecture: Architecture | None = None) -> None:
        self._architecture = architecture or find_architecture(model)
        refuse_nesting(self._architecture)
        for setting in settings:
            if setting.intervention is not None:
                check_fit(setting.intervention, self._architecture)
            if (reason := why_not_rows(setting, self._architecture)) is not None:
                raise SteeringError(f"cannot steer rows: {reason}", allowed="one setting at a time: fold, hook")
        self._settings = tuple(settings)
        self._rows: tuple[int, ...] = ()
        self._index: torch.Tensor | None = None
        self._touched = self._tables()
        self._handles = [_hook(module, self._operand, touched) for module, touched in self._touched.items()]
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
            self._rows, self._index = tuple(rows), None
            for touched in self._touched.values():
                touched.operand = None

    def _tables(self) -> dict[nn.Module, _Touched]:
        """The modules that some setting touches, each with its table in float32."""
        found: dict[nn.Module, _Touched] = {}

        def line(module: nn.Module, kind: Kind, channels: int, position: int) -> torch.Tensor:
            if module not in found:
                neutral = torch.ones if kind == "factors" else torch.zeros
                found[module] = _Touched(kind, neutral(len(self._settings), channels))
            return found[module].table[position]

        for position, setting in enumerate(self._settings):
            intervention = setting.intervention
            if setting.is_baseline or intervention is None:
                continue
            if isinstance(intervention, Circuit):
                for key, neurons in intervention.by_projection().items():
                    projection = self._architecture.projections[key]
                    line(projection.down, "factors", projection.width, position)[neurons] = setting.multiplier
                    found[projection.down].channels = projection.channels
                continue
            for index, vector in intervention.tensors.items():
                layer = self._architecture.layers[index]
                module = layer.write if intervention.place == "write" else layer.block
                line(module, "vectors", self._architecture.hidden, position).copy_(vector.float() * setting.strength)
        return found

    def _operand(self, touched: _Touched, x: torch.Tensor) -> torch.Tensor:
        """The operand [rows, 1, channels] of a module for the rows at hand, made once per assignment."""
        if len(self._rows) != x.shape[0]:
            raise SteeringError(
                "rows of the batch", got=x.shape[0], allowed=f"the {len(self._rows)} that were assigned"
            )
        if touched.operand is None:
            if touched.channels is not None and x.shape[-1] != touched.table.shape[1]:
                held = touched.channels(x)  # the weight is cut over processes: each steers its own neurons
                touched.table = touched.table[:, held.start : held.stop]
            if self._index is None or self._index.device != x.device:
                self._index = torch.tensor(self._rows, device=x.device)
            touched.table = touched.table.to(device=x.device, dtype=x.dtype)
            touched.operand = touched.table.index_select(0, self._index).unsqueeze(1)
        return touched.operand


def _hook(
    module: nn.Module, operand: Callable[[_Touched, torch.Tensor], torch.Tensor], touched: _Touched
) -> torch.utils.hooks.RemovableHandle:
    """Multiply what goes into the module, or add to what comes out of it."""
    if touched.kind == "factors":

        def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] * operand(touched, args[0]), *args[1:])

        return module.register_forward_pre_hook(scale)

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        steered = hidden + operand(touched, hidden)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return module.register_forward_hook(add)
