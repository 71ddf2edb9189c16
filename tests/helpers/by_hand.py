"""A model whose neurons are scaled by hand: what fold, hook and rows are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.neurons import SHARED
from tests.reference import mixture


@contextmanager
def scaled_by_hand(model: Any, chosen: Circuit, multiplier: float) -> Iterator[None]:
    """Replace every MLP of a mixture by a loop over tokens and experts that scales activations."""
    architecture, handles = find_architecture(model), []
    factors = {(part.layer, part.expert): torch.ones(part.width) for part in architecture.layout.parts}
    for neuron in chosen.neurons:
        factors[neuron.layer, neuron.expert][neuron.index] = multiplier

    def replace(layer: int, mlp: Any) -> Any:
        def forward(hidden: torch.Tensor) -> Any:
            written = []
            for token in hidden.flatten(0, 1):
                if not hasattr(mlp, "experts"):
                    inner = nn.functional.silu(mlp.gate_proj(token)) * mlp.up_proj(token)
                    written.append(mlp.down_proj(inner * factors[layer, None]))
                    continue
                table = torch.stack([factors[layer, expert] for expert in range(mlp.experts.num_experts)])
                total = mixture.output(mlp, token, table)
                if hasattr(mlp, "shared_expert"):
                    total = total + mixture.shared_output(mlp, token, factors[layer, SHARED])
                written.append(total)
            out = torch.stack(written).view_as(hidden)
            return (out, None) if type(mlp).__name__ == "GptOssMLP" else out

        return forward

    for layer, block in enumerate(model.model.layers):
        block.mlp.forward = replace(layer, block.mlp)
        handles.append(block.mlp)
    try:
        yield
    finally:
        for mlp in handles:
            del mlp.forward


@contextmanager
def columns_scaled_by_hand(model: Any, chosen: Circuit, multiplier: float) -> Iterator[None]:
    """Multiply the columns of a dense model's down-projections, one at a time."""
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for neuron in chosen.neurons:
            (projection,) = find_architecture(model).layers[neuron.layer].projections
            weight = model.get_parameter(f"{projection.name}.weight")
            column = weight[neuron.index] if type(projection.down).__name__ == "Conv1D" else weight[:, neuron.index]
            column.mul_(multiplier)
    try:
        yield
    finally:
        model.load_state_dict(saved)
