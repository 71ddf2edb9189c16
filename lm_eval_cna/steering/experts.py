"""Hook mode for routed experts: scale the input of some experts' down-projections.

Two of transformers' implementations, `batched_mm` and `grouped_mm`, pass all visits of tokens to experts through the
module's gate at once. The gate's result is the down-projections' input, so it is scaled there. Other implementations
never show it and are refused. Which batch row a visit belongs to is not known, so rows cannot be steered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.transformer.experts import visits
from lm_eval_cna.transformer.projection import Projection

#: Implementations of experts whose gate sees all visits at once.
HOOKABLE = ("batched_mm", "grouped_mm")


def why_not_hook(projection: Projection) -> str | None:
    """The reason why a routed expert's activations cannot be scaled by a hook, or None."""
    if projection.has_adapter:
        return f"{projection.name} carries an adapter"
    if (used := _implementation(projection.base)) not in HOOKABLE:
        return f"the {used} implementation of experts computes {projection.name} out of reach of a hook"
    return None


def hook_experts(
    projections: Sequence[Projection], neurons: Mapping[int, Sequence[int]], multiplier: float
) -> Callable[[], None]:
    """Scale neurons of the routed experts of one layer at every call; returns a function that undoes it.

    `projections` are all routed experts of the layer, in order; `neurons` are those of each touched expert.
    """
    experts: Any = projections[0].base
    factors = torch.ones(len(projections), projections[0].width)
    for expert, chosen in neurons.items():
        factors[expert, list(chosen)] = multiplier
    scaling = _Scaling(experts, factors)
    own = experts.__dict__.get("_apply_gate")
    experts._apply_gate = scaling.scaled_gate
    handles = [
        experts.register_forward_pre_hook(scaling.enter, with_kwargs=True),
        experts.register_forward_hook(scaling.leave),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        if own is None:
            del experts._apply_gate
        else:
            experts._apply_gate = own

    return undo


class _Scaling:
    """Scales what one experts module's gate returns."""

    def __init__(self, experts: Any, factors: torch.Tensor) -> None:
        self._gate = experts._apply_gate
        self._factors = factors
        self._visited: torch.Tensor | None = None  # the expert of each visit, while the module runs

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        used = _implementation(module)
        if used not in HOOKABLE:  # it can be changed while a model is steered
            raise SteeringError("implementation of experts in hook mode", got=used, allowed=", ".join(HOOKABLE))
        _, chosen = visits(args, kwargs)
        # The gate gets visits as the tokens choose them, or sorted by expert.
        self._visited = chosen.reshape(-1) if used == "batched_mm" else chosen.reshape(-1).sort().values

    def scaled_gate(self, projected: torch.Tensor) -> torch.Tensor:
        if self._visited is None or len(self._visited) != len(projected):
            raise SteeringError("the experts were not computed as their implementation says", do="use mode=fold")
        activations: torch.Tensor = self._gate(projected)
        self._factors = self._factors.to(activations.device, activations.dtype)
        visited, self._visited = self._visited, None
        return activations * self._factors.index_select(0, visited)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._visited is not None:
            raise SteeringError("the experts' gate was not called, so nothing was scaled", do="use mode=fold")


def _implementation(experts: Any) -> str:
    return str(getattr(experts.config, "_experts_implementation", None))
