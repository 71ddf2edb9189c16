"""Routed experts with fused weights, as in transformers 5: check their layout, compute their activations.

One module holds `gate_up_proj` and `down_proj` of all experts of a layer. A hook cannot see the input of a single
expert's down-projection, so the activations of the recorded tokens are computed again from the module's inputs, with
its own gate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import ArchitectureError, CNAError


def check_experts(experts: nn.Module, name: str, hidden: int) -> None:
    """Refuse an experts module (without adapter wrappers) of unknown layout.

    Raises:
        ArchitectureError: the layout is unknown; the message names the module and the difference.
    """
    if (reason := _why_unknown(experts, hidden)) is not None:
        raise ArchitectureError(
            f"{name} ({type(experts).__name__}) keeps its experts in a layout that is not known: {reason}",
            allowed="gate_up_proj and down_proj of all experts in one tensor each, as transformers 5 has them",
        )


def _why_unknown(experts: nn.Module, hidden: int) -> str | None:
    down, up = getattr(experts, "down_proj", None), getattr(experts, "gate_up_proj", None)
    for kind, tensor in (("down_proj", down), ("gate_up_proj", up)):
        if type(tensor) is not nn.Parameter or tensor.ndim != 3:
            found = f"{tuple(tensor.shape)} {type(tensor).__name__}" if isinstance(tensor, torch.Tensor) else tensor
            return f"{kind} is {'missing' if tensor is None else found}"
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            return f"{kind} is quantized to {tensor.dtype}"
    transposed = getattr(experts, "is_transposed", None)
    if not callable(getattr(experts, "_apply_gate", None)) or not isinstance(transposed, bool):
        return "it does not say how its gate is applied"
    if getattr(experts, "_is_expert_parallel", False):
        return "its experts are spread over several devices"
    assert isinstance(down, nn.Parameter) and isinstance(up, nn.Parameter)
    count, rows, columns = down.shape
    shapes = ((count, hidden, columns), (count, 2 * columns, hidden))
    if transposed:
        shapes = ((count, rows, hidden), (count, hidden, 2 * rows))
    if (tuple(down.shape), tuple(up.shape)) != shapes:
        return f"down_proj is {tuple(down.shape)} and gate_up_proj {tuple(up.shape)}"
    return None


def routed_activations(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Compute the inputs of all experts' down-projections for some tokens.

    The routing weight is applied after the down-projection, so it is not part of the activation. An expert that a token
    does not visit has zeros, since the token does not use these neurons; means over tokens include the zeros.

    Args:
        experts: a module that has passed `check_experts`.
        hidden: its input [tokens, hidden].
        chosen: numbers of the experts that each token visits [tokens, visits].

    Returns:
        [tokens, experts * width], ordered by expert.

    Raises:
        CNAError: the weights are offloaded.
    """
    down, up = experts.down_proj, experts.gate_up_proj
    if up.device.type == "meta":
        raise CNAError("the experts are offloaded, and their activations cannot be read", do="load them into memory")
    width = down.shape[1] if experts.is_transposed else down.shape[2]
    bias = experts.gate_up_proj_bias if getattr(experts, "has_bias", False) else None
    values = hidden.new_zeros(len(hidden), down.shape[0], width)
    for expert in torch.unique(chosen).tolist():
        tokens = (chosen == expert).any(dim=-1).nonzero().squeeze(1)
        weight = up[expert].T if experts.is_transposed else up[expert]
        gated = nn.functional.linear(hidden[tokens], weight, None if bias is None else bias[expert])
        values[tokens, expert] = experts._apply_gate(gated).to(values.dtype)
    return values.flatten(1)


def visits(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of an experts module: hidden states [tokens, hidden] and expert numbers [tokens, visits]."""
    # All of transformers' experts modules have these first, under different names.
    hidden, chosen, *_ = *args, *kwargs.values()
    return hidden, chosen
