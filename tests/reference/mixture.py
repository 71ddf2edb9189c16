"""A mixture-of-experts layer by hand: one token at a time, one expert at a time, straight from the weights.

Independent of `lm_eval_cna` and of transformers' experts modules, whose weights alone are read. Routing is asked of the
model's own router.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def inputs_of(model: Any, ids: torch.Tensor, modules: list[nn.Module]) -> list[torch.Tensor]:
    """What goes into each module in one forward pass."""
    seen: dict[nn.Module, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda module, args: seen.__setitem__(module, args[0])) for module in modules
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return [seen[module] for module in modules]


def activation(mlp: Any, expert: int, token: torch.Tensor) -> torch.Tensor:
    """What stands at the input of an expert's down-projection for one token [hidden]: [width]."""
    experts = mlp.experts
    weight = experts.gate_up_proj[expert]
    if type(experts).__name__ == "GptOssExperts":  # [hidden, 2 * width], gate and up take turns
        both = token @ weight + experts.gate_up_proj_bias[expert]
        gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    half = len(weight) // 2
    return nn.functional.silu(weight[:half] @ token) * (weight[half:] @ token)


def visited(mlp: Any, token: torch.Tensor) -> tuple[list[int], list[float]]:
    """The experts that a token [hidden] visits, with their routing weights."""
    router = mlp.router if hasattr(mlp, "router") else mlp.gate
    _, weights, chosen = router(token[None])
    return chosen[0].tolist(), weights[0].tolist()


def output(mlp: Any, token: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """What routed experts write for one token [hidden], activations scaled by factors [experts, width]: [hidden]."""
    experts, total = mlp.experts, torch.zeros_like(token)
    for expert, share in zip(*visited(mlp, token), strict=True):
        scaled = activation(mlp, expert, token) * factors[expert]
        if type(experts).__name__ == "GptOssExperts":
            written = scaled @ experts.down_proj[expert] + experts.down_proj_bias[expert]
        else:
            written = experts.down_proj[expert] @ scaled
        total = total + share * written
    return total


def shared_activation(mlp: Any, token: torch.Tensor) -> torch.Tensor:
    """The same of Qwen2-MoE's shared expert."""
    return nn.functional.silu(mlp.shared_expert.gate_proj.weight @ token) * (mlp.shared_expert.up_proj.weight @ token)


def shared_output(mlp: Any, token: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """What the shared expert writes for one token, behind its gate."""
    written = mlp.shared_expert.down_proj.weight @ (shared_activation(mlp, token) * factors)
    return torch.sigmoid(mlp.shared_expert_gate.weight @ token) * written
