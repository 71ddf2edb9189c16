"""How a circuit's neurons are spread over the layers, and how much two circuits overlap.

These are the figures of arXiv 2605.12290, Table 8, for any circuit: the share of neurons in the last layers, and the
(layer, neuron) pairs that a base and an instruct model share. `final_layers` says how parts of the layers are rounded.
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
    """How the neurons of a circuit, or its first ones, are spread over the layers."""

    neurons: int
    """Number of neurons."""
    counts: tuple[int, ...]
    """Neurons in each layer of the model, from layer 0."""
    last_three: float
    """Share in the last three layers, 0 to 1."""
    final_quarter: float
    """Share in the final quarter of the layers, 0 to 1."""
    final_tenth: float
    """Share in the final tenth of the layers, 0 to 1."""


@dataclass(frozen=True)
class LayerProfile:
    """The layer profile of a circuit."""

    num_layers: int
    """Number of layers of the model."""
    quarter_layers: int
    tenth_layers: int
    """Numbers of layers that the final quarter and the final tenth stand for."""
    whole: LayerShares
    """For all neurons."""
    top: LayerShares
    """For the first 200 neurons, the strongest of a `cna` circuit; equal to `whole` for a smaller circuit."""


@dataclass(frozen=True)
class Overlap:
    """The neurons that two circuits of one shape share."""

    common: int
    """Neurons in both circuits; an index counts as the same neuron only in the same layer and expert."""
    size_a: int
    size_b: int
    """Neurons of each circuit."""
    of_smaller: float
    """Common neurons over the size of the smaller circuit; 1 if one circuit contains the other."""
    of_a: float
    of_b: float
    """Common neurons over the size of each circuit."""
    jaccard: float
    """Common neurons over the neurons in at least one circuit."""
    by_chance: float | None
    """Expected `of_smaller` of two random circuits of these sizes: the larger size over all neurons of the model. None
    if neither file gives the model's shape."""


def layer_profile(circuit: Circuit, *, num_layers: int | None = None, top: int = TOP) -> LayerProfile:
    """Count a circuit's neurons by layer, and compute the shares in the last layers.

    Args:
        circuit: the circuit.
        num_layers: number of layers of the model, for a file that does not give it (the reference repository's).
        top: how many of the first neurons `LayerProfile.top` covers.

    Raises:
        InterventionError: the number of layers is unknown, contradicts the file, or is too small for the circuit.
    """
    layers = _num_layers(circuit, num_layers)
    quarter, tenth = final_layers(layers, 4), final_layers(layers, 10)
    whole = _shares(circuit, layers, quarter, tenth)
    first = circuit.prefix(top) if top < len(circuit.neurons) else circuit
    return LayerProfile(layers, quarter, tenth, whole, _shares(first, layers, quarter, tenth))


def final_layers(num_layers: int, parts: int) -> int:
    """Number of layers in the last 1/`parts` of a model: the nearest whole number, halves up, at least 1."""
    return max(1, (2 * num_layers + parts) // (2 * parts))


def overlap(a: Circuit, b: Circuit) -> Overlap:
    """Count the neurons that two circuits share; deltas are ignored.

    A shape that one file does not give is taken from the other file.

    Raises:
        InterventionError: the models differ in layers, MLP width or experts, or a circuit has neurons that the other's
            model does not have.
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
    """The layers, MLP width and experts of both models, as far as the files give them."""
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
