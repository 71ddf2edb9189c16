"""An intervention at a multiplier on a model: fold, hook or rows, and undo.

Floor 2. Because (W[:, j] * m) * x_j = W[:, j] * (m * x_j), scaling neuron j at all positions is the same as scaling
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

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering_experts import hook_experts
from lm_eval_cna.steering_modes import MODES, Mode, resolve_mode
from lm_eval_cna.transformer.decoder import Architecture, Layer, find_architecture
from lm_eval_cna.transformer.projection import Projection
from lm_eval_cna.transformer.weights import local

# Decoder stacks that are being steered; steering one a second time would fold saved columns into saved columns.
_steered: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Setting:
    """One point of the axis that all methods share.

    Attributes:
        intervention: circuit or vectors; None is the baseline.
        multiplier: 0 suppresses, 1 is the untouched model, 2 amplifies.
        scale: factor of vectors, 1 for the published ones.
    """

    intervention: Circuit | Vectors | None = None
    multiplier: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.multiplier) and math.isfinite(self.scale)):
            raise SteeringError("multiplier and scale", got=(self.multiplier, self.scale), allowed="finite numbers")

    @property
    def is_baseline(self) -> bool:
        """Whether this setting leaves the model untouched: m = 1 does, for every method."""
        return self.intervention is None or self.multiplier == 1.0

    @property
    def strength(self) -> float:
        """What vectors are multiplied with before they are added: (m - 1) * scale."""
        return (self.multiplier - 1.0) * self.scale


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
            for undo in _touch(architecture.layers[index], setting, mode):
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


def _touch(layer: Layer, setting: Setting, mode: str) -> Iterator[Callable[[], Any]]:
    """Steer one layer; yields what undoes each step."""
    if isinstance(setting.intervention, Vectors):
        vector = setting.intervention.tensors[layer.index] * setting.strength
        module = layer.write if setting.intervention.place == "write" else layer.block
        yield module.register_forward_hook(adder(vector)).remove
        return
    assert setting.intervention is not None
    grouped = setting.intervention.by_projection()
    routed: dict[int, list[int]] = {}
    for projection in layer.projections:
        chosen = grouped.get((layer.index, projection.expert))
        if chosen is None:
            continue
        if mode == "fold":
            yield _fold(projection, chosen, setting.multiplier)
        elif isinstance(projection.expert, int):
            routed[projection.expert] = chosen
        else:
            scale = _scaler_of(projection, chosen, setting.multiplier)
            yield projection.down.register_forward_pre_hook(scale, with_kwargs=True).remove
    if routed:
        yield hook_experts([p for p in layer.projections if p.is_routed], routed, setting.multiplier)


def _fold(projection: Projection, neurons: list[int], multiplier: float) -> Callable[[], Any]:
    places = _places(neurons, projection.held)
    return fold_columns(local(projection.weight), projection.neuron_dim, places, multiplier)


def _places(neurons: list[int], held: range) -> torch.Tensor:
    """Where neurons stand among those that are held here; other processes steer the others."""
    return torch.tensor([neuron - held.start for neuron in neurons if neuron in held], dtype=torch.long)


def fold_columns(weight: torch.Tensor, dim: int, indices: torch.Tensor, multiplier: float) -> Callable[[], Any]:
    """Scale the weight's columns for some neurons, in place; the returned function puts them back, bit for bit.

    Args:
        weight: of a down-projection.
        dim: its dimension that runs over neurons.
        indices: neuron indices [n], on any device.
        multiplier: what the columns are multiplied with.
    """
    indices = indices.to(weight.device)
    saved = weight.index_select(dim, indices)
    # Not multiplied in place: at m = 0 a product would keep the sign of zero and turn an infinite weight into NaN.
    weight.index_copy_(dim, indices, saved * multiplier if multiplier else torch.zeros_like(saved))
    return lambda: weight.index_copy_(dim, indices, saved)


def _scaler_of(projection: Projection, neurons: list[int], multiplier: float) -> Callable[..., Any]:
    """A pre-hook of a down-projection that scales those of the neurons whose activations it is given."""
    made: dict[int, Callable[..., Any]] = {}

    def scale(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        size = args[0].shape[-1]
        if size not in made:
            made[size] = scaler(_places(neurons, projection.channels(args[0])), multiplier)
        return made[size](module, args, kwargs)

    return scale


def scaler(indices: torch.Tensor, multiplier: float) -> Callable[..., Any]:
    """A pre-hook of the down-projection that scales the chosen channels of its input."""
    placed: dict[torch.device, torch.Tensor] = {}

    def scale(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0]
        # An offloaded model may call a layer on another device than the one its weight was loaded to.
        chosen = placed.get(x.device)
        if chosen is None:
            chosen = placed[x.device] = indices.to(x.device)
        return (x.index_copy(-1, chosen, x.index_select(-1, chosen) * multiplier), *args[1:]), kwargs

    return scale


def adder(vector: torch.Tensor) -> Callable[..., Any]:
    """A forward hook that adds a vector to a module's output, the first one where there are several."""
    placed: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        key = (hidden.device, hidden.dtype)
        if key not in placed:
            placed[key] = vector.to(device=hidden.device, dtype=hidden.dtype)
        steered = hidden + placed[key]
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return add
