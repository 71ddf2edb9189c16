"""The two forward hooks that steer: one scales neurons, one adds a vector.

Both return new tensors. Falcon adds attention into the MLP's output in place, so a hook that edited what it is given
would change what other hooks have recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lm_eval_cna.transformer.forward import hidden_states, with_hidden_states


def local_neurons(neurons: Sequence[int], held: range) -> list[int]:
    """The neurons that this process holds, counted from the first one it holds; other processes steer the rest."""
    return [neuron - held.start for neuron in neurons if neuron in held]


def scaler(channels: Callable[[torch.Tensor], Sequence[int]], multiplier: float) -> Callable[..., Any]:
    """A pre-hook that scales some channels of a down-projection's input; `channels` names them, given the input."""
    # An offloaded model may call a layer on another device than before, and a cut one with fewer channels.
    known: dict[tuple[torch.device, int], torch.Tensor] = {}

    def scale(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0]
        key = (x.device, x.shape[-1])
        if key not in known:
            known[key] = torch.tensor(channels(x), dtype=torch.long, device=x.device)
        chosen = known[key]
        return (x.index_copy(-1, chosen, x.index_select(-1, chosen) * multiplier), *args[1:]), kwargs

    return scale


def adder(vector: torch.Tensor) -> Callable[..., Any]:
    """A forward hook that adds a vector [hidden] to a module's output."""
    known: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def vector_for(hidden: torch.Tensor) -> torch.Tensor:
        key = (hidden.device, hidden.dtype)
        if key not in known:
            known[key] = vector.to(device=hidden.device, dtype=hidden.dtype)
        return known[key]

    return adder_of(vector_for)


def adder_of(operand: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A forward hook that adds what `operand` makes of a module's output; of a tuple, the first item is the output."""

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = hidden_states(output)
        return with_hidden_states(output, hidden + operand(hidden))

    return add
