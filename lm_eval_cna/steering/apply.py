"""Steer a whole model with one setting, and put it back bit for bit.

Because (W[:, j] * m) * x_j = W[:, j] * (m * x_j), scaling neuron j at all positions is the same as scaling column j of
the down-projection. Mode "fold" scales the columns (`fold`), mode "hook" the projection's input (`hooks`). A hook adds
vectors v as (m - 1) * scale * v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.experts import hook_experts
from lm_eval_cna.steering.fold import fold_columns
from lm_eval_cna.steering.hooks import adder, local_neurons, scaler
from lm_eval_cna.steering.modes import MODES, Mode, resolve_mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, Layer, find_architecture
from lm_eval_cna.transformer.projection import Projection
from lm_eval_cna.transformer.weights import local

# Decoder stacks that are steered now. Steering one again would save scaled columns as if they were the model's own.
_steered: WeakSet[nn.Module] = WeakSet()


class Steering:
    """A steered model, as `apply` returns it; `undo` puts the model back."""

    mode: str
    """How the model is steered: "fold", "hook", or "none" under a baseline setting."""
    layers: tuple[int, ...]
    """The steered layers; none under a baseline setting."""

    def __init__(self, mode: str, layers: tuple[int, ...] = (), undo: ExitStack | None = None) -> None:
        self.mode, self.layers = mode, layers
        self._undo = ExitStack() if undo is None else undo

    def undo(self) -> None:
        """Put the model back, bit for bit. A second call does nothing."""
        self._undo.close()


def apply(
    model: nn.Module, setting: Setting, *, mode: Mode = "auto", architecture: Architecture | None = None
) -> Steering:
    """Steer `model` until the returned handle's `undo` is called.

    Args:
        model: a transformers model.
        setting: what to do. The baseline (m = 1, or no intervention) changes nothing.
        mode: "auto" folds where all touched weights can be edited and hooks otherwise; vectors are always hooked.
        architecture: of `model`, if it is known already.

    Raises:
        InterventionError: the intervention does not fit the model.
        SteeringError: the model is steered already, or the mode is unknown, inexact or impossible here.
        ArchitectureError: the model is of no known family.
    """
    if mode not in MODES:
        raise SteeringError("mode", got=mode, allowed=", ".join(MODES))
    if setting.intervention is None:
        return Steering("none")
    architecture = architecture or find_architecture(model)
    check_fit(setting.intervention, architecture)
    mode = resolve_mode(setting.intervention, architecture, model, mode)
    refuse_nesting(architecture)
    if setting.is_baseline:
        return Steering("none")
    with ExitStack() as undo:  # an error on the way undoes the steps before it
        undo.callback(mark_steered(architecture))
        for index in setting.intervention.layers:
            for undo_step in _steer_layer(architecture.layers[index], setting, mode):
                undo.callback(undo_step)
        return Steering(mode, setting.intervention.layers, undo.pop_all())


@contextmanager
def steer(
    model: nn.Module, setting: Setting, *, mode: Mode = "auto", architecture: Architecture | None = None
) -> Iterator[Steering]:
    """Steer a model inside a `with` block; after the block, and after an exception, it is as before, bit for bit.

    Arguments and errors are those of `apply`. Steering does not nest.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from lm_eval_cna.interventions.circuit import Circuit
        >>> from lm_eval_cna.steering import Setting, steer
        >>> from lm_eval_cna.transformer.neurons import Neuron
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
        >>> column = model.model.layers[1].mlp.down_proj.weight[:, 5]
        >>> circuit = Circuit(method="cna", name="one neuron", neurons=(Neuron(layer=1, index=5, delta=1.0),))
        >>> with steer(model, Setting(circuit, multiplier=0.0)) as steering:
        ...     steering.mode, bool((column == 0).all())
        ('fold', True)
        >>> bool((column == 0).any())
        False
    """
    steering = apply(model, setting, mode=mode, architecture=architecture)
    try:
        yield steering
    finally:
        steering.undo()


def refuse_nesting(architecture: Architecture) -> None:
    """Raise SteeringError if the model is steered already."""
    if architecture.stack in _steered:
        raise SteeringError("the model is steered already", do="undo the other steering first; settings do not nest")


def mark_steered(architecture: Architecture) -> Callable[[], None]:
    """Let a second steering of the model be refused, until the returned function is called."""
    _steered.add(architecture.stack)
    return partial(_steered.discard, architecture.stack)


def _steer_layer(layer: Layer, setting: Setting, mode: str) -> Iterator[Callable[[], Any]]:
    """Steer one layer; yields a function that undoes each step."""
    if isinstance(setting.intervention, Vectors):
        vector = setting.intervention.tensors[layer.index] * setting.strength
        module = layer.write if setting.intervention.place == "write" else layer.block
        yield module.register_forward_hook(adder(vector)).remove
        return
    assert isinstance(setting.intervention, Circuit)
    grouped = setting.intervention.by_projection()
    routed: dict[int, list[int]] = {}
    for projection in layer.projections:
        neurons = grouped.get((layer.index, projection.expert))
        if neurons is None:
            continue
        if mode == "fold":
            held = local_neurons(neurons, projection.held)
            yield fold_columns(local(projection.weight), projection.neuron_dim, held, setting.multiplier)
        elif isinstance(projection.expert, int):
            routed[projection.expert] = neurons
        else:
            yield _hook_projection(projection, neurons, setting.multiplier)
    if routed:
        yield hook_experts([p for p in layer.projections if p.is_routed], routed, setting.multiplier)


def _hook_projection(projection: Projection, neurons: list[int], multiplier: float) -> Callable[[], Any]:
    scale = scaler(lambda x: local_neurons(neurons, projection.channels(x)), multiplier)
    return projection.down.register_forward_pre_hook(scale, with_kwargs=True).remove
