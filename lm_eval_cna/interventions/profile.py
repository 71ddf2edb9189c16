"""Where in the model a circuit's neurons lie, and how much two circuits have in common.

The paper reports that circuits sit late in the model (Llama-3.2-1B: 87 % of the top 200 in the last three of 16
layers; Qwen2.5-3B: 95 % in the final quarter) and that the circuits of a base model and its instruct twin share 8 to
29 % of their (layer, neuron) pairs (arXiv 2605.12290, Table 8). Here are those figures for any circuit. Pure Python.

A quarter or a tenth of a number of layers that 4 or 10 does not divide is rounded to the nearest whole number of
layers, halves up, and is at least one layer: of 18 layers the final quarter is 5 (4.5), of 16 the final tenth is 2
(1.6), of 4 it is 1. The numbers used stand in the profile.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.header import ModelInfo

TOP = 200
LAST = 3


@dataclass(frozen=True)
class LayerShares:
    """How the neurons of a circuit, or of its top, are spread over the layers."""

    neurons: int
    """How many there are."""
    counts: tuple[int, ...]
    """Neurons of each layer of the model, from layer 0."""
    last_three: float
    """Share in the last three layers, 0 to 1."""
    final_quarter: float
    """Share in the final quarter of the layers."""
    final_tenth: float
    """Share in the final tenth of the layers."""


@dataclass(frozen=True)
class LayerProfile:
    """The layer profile of a circuit."""

    num_layers: int
    """Layers of the model."""
    quarter_layers: int
    tenth_layers: int
    """How many layers the final quarter and the final tenth are."""
    whole: LayerShares
    """All neurons."""
    top: LayerShares
    """The first 200, the strongest ones of a `cna` circuit; equal to `whole` for a smaller circuit."""


@dataclass(frozen=True)
class Overlap:
    """What two circuits of one shape have in common."""

    common: int
    """Neurons in both, of the same layer and, in a mixture of experts, of the same expert."""
    size_a: int
    size_b: int
    """Neurons of each."""
    of_smaller: float
    """Common neurons over the smaller circuit's size: 1 where one circuit holds the other."""
    of_a: float
    of_b: float
    """Common neurons over each circuit's size."""
    jaccard: float
    """Common neurons over the neurons in either."""
    by_chance: float | None
    """The `of_smaller` to expect of two circuits of these sizes drawn at random from the whole model, larger size over
    all neurons; None where neither file names the model's shape."""


def layer_profile(circuit: Circuit, *, num_layers: int | None = None, top: int = TOP) -> LayerProfile:
    """Count a circuit's neurons by layer, and give the shares that lie late in the model.

    Args:
        circuit: the circuit.
        num_layers: layers of the model, for a file that does not name them (the reference repository's).
        top: how many neurons count as the top.

    Raises:
        InterventionError: the number of layers is not known, contradicts the file, or is too small for the circuit.
    """
    layers = _num_layers(circuit, num_layers)
    quarter, tenth = final_layers(layers, 4), final_layers(layers, 10)
    whole = _shares(circuit, layers, quarter, tenth)
    first = circuit.prefix(top) if top < len(circuit.neurons) else circuit
    return LayerProfile(layers, quarter, tenth, whole, _shares(first, layers, quarter, tenth))


def final_layers(num_layers: int, parts: int) -> int:
    """How many layers the final `parts`-th of a model is: the nearest whole number, halves up, at least 1."""
    return max(1, (2 * num_layers + parts) // (2 * parts))


def overlap(a: Circuit, b: Circuit) -> Overlap:
    """Compare two circuits of models of one shape, neuron by neuron; deltas play no part.

    A shape that a file does not name is taken from the other one.

    Raises:
        InterventionError: the models differ in layers, MLP width or experts, or a circuit has neurons outside the
            other's model.
    """
    neurons = _common_shape(a, b).num_neurons
    pairs_a, pairs_b = set(a.places), set(b.places)
    common, small, large = len(pairs_a & pairs_b), *sorted((len(pairs_a), len(pairs_b)))
    return Overlap(
        common=common,
        size_a=len(pairs_a),
        size_b=len(pairs_b),
        of_smaller=common / small,
        of_a=common / len(pairs_a),
        of_b=common / len(pairs_b),
        jaccard=common / (small + large - common),
        by_chance=None if neurons is None else large / neurons,
    )


def _shares(circuit: Circuit, layers: int, quarter: int, tenth: int) -> LayerShares:
    by_layer = Counter(neuron.layer for neuron in circuit.neurons)
    counts = tuple(by_layer[layer] for layer in range(layers))

    def share(last: int) -> float:
        return sum(counts[-last:]) / len(circuit.neurons)

    return LayerShares(len(circuit.neurons), counts, share(LAST), share(quarter), share(tenth))


def _num_layers(circuit: Circuit, given: int | None) -> int:
    named = circuit.model.num_layers
    if named is None and given is None:
        raise InterventionError(
            f"circuit {circuit.name} does not say how many layers its model has",
            do="discover it again, or give the number of layers",
        )
    if None not in (named, given) and named != given:
        raise InterventionError("number of layers", got=given, allowed=f"{named}, as circuit {circuit.name} says")
    layers = named if named is not None else given
    assert layers is not None
    if circuit.layers[-1] >= layers:
        raise InterventionError(
            "number of layers", got=layers, allowed=f"more than {circuit.layers[-1]}, a layer of circuit {circuit.name}"
        )
    return layers


def _common_shape(a: Circuit, b: Circuit) -> ModelInfo:
    """The layers, MLP width and experts that both circuits belong to, as far as these are named."""
    shape: dict[str, Any] = {}
    for field, words in (("num_layers", "layers"), ("mlp_width", "neurons a layer"), ("experts", "experts")):
        of_a, of_b = getattr(a.model, field), getattr(b.model, field)
        if None not in (of_a, of_b) and of_a != of_b:
            found = f"{a.model.shape} and {b.model.shape}" if field == "experts" else f"{of_a} and {of_b} {words}"
            raise InterventionError(
                f"circuits {a.name} and {b.name} belong to models of different shapes",
                got=found,
                allowed="circuits of one model, or of a base model and its instruct twin",
            )
        shape[field] = of_a if of_a is not None else of_b
    depth = shape["num_layers"]
    model = ModelInfo(**shape)
    for circuit in (a, b):
        for neuron in circuit.neurons:
            owner = "" if neuron.expert is None else f"expert {neuron.expert} of "
            try:
                width = model.width_of(neuron.layer, neuron.expert)
            except ValueError:
                width = 0
            if neuron.layer >= (depth or neuron.layer + 1) or (width is not None and neuron.index >= width):
                raise InterventionError(
                    f"circuits {a.name} and {b.name} belong to models of different shapes",
                    got=f"neuron {neuron.index} of {owner}layer {neuron.layer} in {circuit.name}",
                    allowed=model.shape or f"layers of {model.mlp_width or 'any number of'} neurons",
                )
    return model
