"""Small circuits and vectors for tiny models."""

from __future__ import annotations

import torch

from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.neurons import Neuron, neuron_at


def circuit(architecture: Architecture, *, per_layer: int = 4, seed: int = 0, name: str = "test") -> Circuit:
    """A circuit with `per_layer` random neurons in every layer."""
    generator = torch.Generator().manual_seed(seed)
    layout = architecture.layout
    places = [
        layout.place(span.start + int(offset))
        for span in map(layout.of_layer, range(layout.num_layers))
        for offset in torch.randperm(len(span), generator=generator)[:per_layer]
    ]
    return Circuit(method="cna", name=name, neurons=tuple(neuron_at(place, 1.0) for place in places))


def spread(architecture: Architecture) -> Circuit:
    """A circuit with neurons of every expert, of the shared one, and of the dense layers."""
    neurons = [
        Neuron(part.layer, index, 1.0, part.expert)
        for part in architecture.layout.parts
        for index in range(part.layer, part.width, 5)
    ]
    return Circuit(method="cna", name="spread", neurons=tuple(neurons))


def vectors(architecture: Architecture, *, place: str = "write", seed: int = 0) -> Vectors:
    """Random vectors for every layer, or for the middle one where they go behind the block."""
    generator = torch.Generator().manual_seed(seed)
    layers = range(len(architecture.layers)) if place == "write" else [len(architecture.layers) // 2]
    tensors = {layer: torch.randn(architecture.hidden, generator=generator) for layer in layers}
    method = "caa" if place == "write" else "caa-residual"
    return Vectors(method=method, name="test", place=place, tensors=tensors)
