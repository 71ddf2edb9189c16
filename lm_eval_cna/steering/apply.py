"""An intervention at a multiplier on a model: fold, hook or rows, and undo.

Because (W[:, j] * m) * x_j = W[:, j] * (m * x_j), scaling neuron j at all positions is the same as scaling
column j of the down-projection (DESIGN section 1):

- fold scales the columns in memory and puts the saved columns back afterwards, bit for bit; no cost per token;
- hook scales the projection's input, for weights that cannot be edited; routed experts allow it in some of their
  implementations (`steering_experts`);
- rows is a hook with one setting per batch row (`steering_rows`).

Vectors v are added as (m - 1) * scale * v with a hook on what the MLP writes (CAA) or on the residual stream behind
a layer (single-layer CAA). Every hook returns a new tensor: Falcon adds attention into the MLP's output in place, and
a hook that edited its input would change what others have recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.steering.hooks import steer_layer
from lm_eval_cna.steering.modes import MODES, Mode, resolve_mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture

# Decoder stacks that are being steered; steering one a second time would fold saved columns into saved columns.
_steered: WeakSet[nn.Module] = WeakSet()


class Steering:
    """A steered model; `undo` puts it back. Made by `apply`; `steer` is its context manager.

    Attributes:
        mode: "fold" or "hook", or "none" where the setting is the baseline.
        layers: the layers that are touched.
    """

    def __init__(self, mode: str, layers: tuple[int, ...], architecture: Architecture | None = None) -> None:
        self.mode = mode
        self.layers = layers
        self._architecture = architecture
        self._undo: list[Callable[[], Any]] = []

    def undo(self) -> None:
        """Put the model back, bit for bit. Safe to call twice."""
        while self._undo:
            self._undo.pop()()
        if self._architecture is not None:
            unmark_steered(self._architecture)


def apply(
    model: nn.Module, setting: Setting, *, mode: Mode = "auto", architecture: Architecture | None = None
) -> Steering:
    """Steer `model` until the returned handle's `undo` is called.

    Args:
        model: a transformers model.
        setting: what to do. The baseline (m = 1, or no intervention) touches nothing at all.
        mode: "auto" folds where all touched weights can be edited and hooks otherwise; vectors always hook.
        architecture: of `model`, where it is known already.

    Raises:
        InterventionError: the intervention does not fit the model.
        SteeringError: the model is steered already, or the mode is asked for where it is not exact or possible.
        ArchitectureError: the model is not of a known family.
    """
    if mode not in MODES:
        raise SteeringError("mode", got=mode, allowed=", ".join(MODES))
    if setting.intervention is None:
        return Steering("none", ())
    architecture = architecture or find_architecture(model)
    check_fit(setting.intervention, architecture)
    mode = resolve_mode(setting.intervention, architecture, model, mode)
    refuse_nesting(architecture)
    if setting.is_baseline:
        return Steering("none", ())
    steering = Steering(mode, setting.intervention.layers, architecture)
    mark_steered(architecture)
    try:
        for index in setting.intervention.layers:
            for undo in steer_layer(architecture.layers[index], setting, mode):
                steering._undo.append(undo)
    except BaseException:
        steering.undo()
        raise
    return steering


@contextmanager
def steer(
    model: nn.Module, setting: Setting, *, mode: Mode = "auto", architecture: Architecture | None = None
) -> Iterator[Steering]:
    """`apply` for the length of a `with` block; the model is put back also after an exception."""
    steering = apply(model, setting, mode=mode, architecture=architecture)
    try:
        yield steering
    finally:
        steering.undo()


def refuse_nesting(architecture: Architecture) -> None:
    """Raise SteeringError if the model is steered already."""
    if architecture.stack in _steered:
        raise SteeringError("the model is steered already", do="undo the other steering first; settings do not nest")


def mark_steered(architecture: Architecture) -> None:
    """Note that the model is steered, so that a second steering is refused."""
    _steered.add(architecture.stack)


def unmark_steered(architecture: Architecture) -> None:
    """Note that the model is as it was."""
    _steered.discard(architecture.stack)
