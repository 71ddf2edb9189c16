"""What steering does to one model: scaled columns, and hooks that scale or add."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.experts import hook_experts
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Layer
from lm_eval_cna.transformer.projection import Projection
from lm_eval_cna.transformer.weights import local


def steer_layer(layer: Layer, setting: Setting, mode: str) -> Iterator[Callable[[], Any]]:
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
