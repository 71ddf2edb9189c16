"""One setting per batch row, so that one batch carries several cells of a sweep.

The arithmetic is the same as in hook mode: a row's activations are multiplied with its own factors (exactly 1 for
neurons outside its circuit), and a row's vector is added to its own hidden states (zeros for circuits). Each touched
module has one table with a line per setting, from which a batch's rows are picked; rows change often, since a finished
response leaves its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.steering.apply import mark_steered, refuse_nesting
from lm_eval_cna.steering.hooks import adder_of
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.projection import Projection


def why_not_rows(setting: Setting, architecture: Architecture) -> str | None:
    """The reason why a row of a batch cannot follow a setting, or None."""
    if setting.is_baseline:
        return None
    if any(_depends_on_other_rows(projection) for projection in architecture.projections.values()):
        return "LLM.int8 keeps channels in 16 bits by what any row of the batch holds (llm_int8_threshold above 0)"
    if not isinstance(setting.intervention, Circuit):
        return None
    mixed = next((index for index in setting.intervention.layers if architecture.layers[index].has_experts), None)
    if mixed is None:
        return None
    return f"layer {mixed} is a mixture of experts, which mixes the tokens of all rows before its down-projections"


def _depends_on_other_rows(projection: Projection) -> bool:
    state = getattr(projection.base, "state", None)  # bitsandbytes' 8-bit layers have one
    return type(projection.weight).__name__ == "Int8Params" and getattr(state, "threshold", 0.0) > 0.0


@dataclass
class _SettingTable:
    """What each setting does to one module."""

    values: torch.Tensor
    """Factors of the input, or vectors to add to the output: [settings, channels]. Moved at the first call to the
    device where the module runs."""
    channels: Callable[[torch.Tensor], range] | None
    """Given an input, which neurons it holds; None for vectors."""
    of_rows: torch.Tensor | None = None
    """The lines of the current rows, [rows, 1, channels]; None after an assignment."""


class RowSteering:
    """A model whose batch rows follow different settings, until this context manager is left.

    Call `assign` before the first forward pass, and again when the batch's rows change. Rows name settings by position.

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
        self._rows: tuple[int, ...] = ()
        self._index: torch.Tensor | None = None
        self._tables = _tables(settings, self._architecture)
        self._undo = ExitStack()
        self._undo.callback(mark_steered(self._architecture))
        for module, table in self._tables.items():
            self._undo.callback(self._hook(module, table).remove)

    def __enter__(self) -> RowSteering:
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def assign(self, rows: Sequence[int]) -> None:
        """Say which setting each row of the next batches follows, by its position."""
        if tuple(rows) != self._rows:
            self._rows, self._index = tuple(rows), None
            for table in self._tables.values():
                table.of_rows = None

    def _hook(self, module: nn.Module, table: _SettingTable) -> torch.utils.hooks.RemovableHandle:
        if table.channels is None:
            return module.register_forward_hook(adder_of(lambda hidden: self._operand(table, hidden)))

        def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] * self._operand(table, args[0]), *args[1:])

        return module.register_forward_pre_hook(scale)

    def _operand(self, table: _SettingTable, x: torch.Tensor) -> torch.Tensor:
        """The factors or vectors [rows, 1, channels] of the current rows, picked once per assignment.

        Raises:
            SteeringError: the batch `x` has another number of rows.
        """
        if len(self._rows) != x.shape[0]:
            raise SteeringError(
                "rows of the batch", got=x.shape[0], allowed=f"the {len(self._rows)} that were assigned"
            )
        if table.of_rows is None:
            if table.channels is not None and x.shape[-1] != table.values.shape[1]:
                held = table.channels(x)  # the weight is cut over processes, and each steers its own neurons
                table.values = table.values[:, held.start : held.stop]
            if self._index is None or self._index.device != x.device:
                self._index = torch.tensor(self._rows, device=x.device)
            table.values = table.values.to(device=x.device, dtype=x.dtype)
            table.of_rows = table.values.index_select(0, self._index).unsqueeze(1)
        return table.of_rows


def _tables(settings: Sequence[Setting], architecture: Architecture) -> dict[nn.Module, _SettingTable]:
    """The modules that some setting touches, each with its table in float32."""
    tables: dict[nn.Module, _SettingTable] = {}
    for position, setting in enumerate(settings):
        intervention = setting.intervention
        if setting.is_baseline or intervention is None:
            continue
        if isinstance(intervention, Circuit):
            for key, neurons in intervention.by_projection().items():
                projection = architecture.projections[key]
                neutral = torch.ones(len(settings), projection.width)
                table = tables.setdefault(projection.down, _SettingTable(neutral, projection.channels))
                table.values[position, neurons] = setting.multiplier
            continue
        for index, vector in intervention.tensors.items():
            layer = architecture.layers[index]
            module = layer.write if intervention.place == "write" else layer.block
            table = tables.setdefault(module, _SettingTable(torch.zeros(len(settings), architecture.hidden), None))
            table.values[position] = vector.float() * setting.strength
    return tables
