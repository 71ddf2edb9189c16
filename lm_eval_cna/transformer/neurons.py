"""How neurons are named, and how all neurons of a model are numbered.

In a dense layer a neuron's place is (layer, index). In a mixture-of-experts layer it is (layer, expert, index), where
the expert is a number from 0, or "shared" for the shared expert that every token visits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

SHARED: Literal["shared"] = "shared"
Expert = int | Literal["shared"]
#: More layers or experts than this have no model; limits what files from elsewhere can claim.
MOST_LAYERS = 100_000
Place = tuple[int, int] | tuple[int, Expert, int]


class Neuron(NamedTuple):
    """One input channel of a down-projection."""

    layer: Annotated[int, Field(ge=0, le=MOST_LAYERS)]
    """Decoder layer, from 0."""
    index: Annotated[int, Field(ge=0, lt=2**31)]  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    """Input channel of the down-projection, from 0."""
    delta: float | None = None
    """Mean activation on positive prompts minus the mean on negative ones; None if not measured (a control)."""
    expert: Annotated[int, Field(ge=0, le=MOST_LAYERS)] | Literal["shared"] | None = None
    """The expert that has the down-projection: a routed expert's number, "shared", or None in a dense layer."""

    @property
    def place(self) -> Place:
        """(layer, index), or (layer, expert, index)."""
        return (self.layer, self.index) if self.expert is None else (self.layer, self.expert, self.index)


def neuron_at(place: Place, delta: float | None = None) -> Neuron:
    """The neuron at a place."""
    layer, *expert, index = place
    assert isinstance(layer, int) and isinstance(index, int)
    return Neuron(layer, index, delta, expert[0] if expert else None)


def in_order(places: Iterable[Place]) -> list[Place]:
    """Sort places by layer, expert and index; the shared expert comes after the routed ones."""
    return sorted(places, key=_order)


def _order(place: Place) -> tuple[int, float, int]:
    neuron = neuron_at(place)
    expert = -1.0 if neuron.expert is None else float("inf") if neuron.expert == SHARED else float(neuron.expert)
    return neuron.layer, expert, neuron.index


class NeuronBlock(NamedTuple):
    """The neurons of one down-projection."""

    layer: int
    """Decoder layer, from 0."""
    expert: Expert | None
    """A routed expert's number, "shared", or None for a dense MLP."""
    width: int
    """Number of neurons."""


@dataclass(frozen=True)
class NeuronLayout:
    """Numbers all neurons of a model: by layer, in a layer by expert, the shared expert last."""

    parts: tuple[NeuronBlock, ...]
    """The down-projections, in this order."""

    @classmethod
    def dense(cls, layers: int, width: int) -> NeuronLayout:
        """The layout of a model without experts."""
        return cls(tuple(NeuronBlock(layer, None, width) for layer in range(layers)))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(part.width for part in self.parts)]

    @cached_property
    def _numbers(self) -> dict[tuple[int, Expert | None], int]:
        return {(part.layer, part.expert): number for number, part in enumerate(self.parts)}

    @cached_property
    def _layers(self) -> list[range]:
        ends: dict[int, int] = {}
        for part, end in zip(self.parts, self._starts[1:], strict=True):
            ends[part.layer] = end
        return [range(start, end) for start, end in zip((0, *ends.values()), ends.values(), strict=False)]

    @property
    def num_neurons(self) -> int:
        """Neurons of the whole model."""
        return self._starts[-1]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self._layers)

    def of_layer(self, layer: int) -> range:
        """The positions of a layer's neurons."""
        return self._layers[layer]

    def has(self, place: Place) -> bool:
        """Whether the model has a neuron at a place."""
        neuron = neuron_at(place)
        number = self._numbers.get((neuron.layer, neuron.expert))
        return number is not None and 0 <= neuron.index < self.parts[number].width

    def position(self, place: Place) -> int:
        """The position of a neuron of the model."""
        neuron = neuron_at(place)
        return self._starts[self._numbers[neuron.layer, neuron.expert]] + neuron.index

    def place(self, position: int) -> Place:
        """The place of the neuron at a position."""
        number = bisect_right(self._starts, position) - 1
        layer, expert, _ = self.parts[number]
        index = position - self._starts[number]
        return (layer, index) if expert is None else (layer, expert, index)

    def peers(self, neuron: Neuron) -> range:
        """Positions of the neurons of the same kind in a layer: its MLP, its shared expert, or all routed experts."""
        whole = self.of_layer(neuron.layer)
        shared = self._numbers.get((neuron.layer, SHARED))
        if neuron.expert is None or shared is None:
            return whole
        border = self._starts[shared]
        return range(border, whole.stop) if neuron.expert == SHARED else range(whole.start, border)


def positions(layout: NeuronLayout, places: Iterable[Place]) -> list[int]:
    """The position of each neuron, in the given order."""
    return [layout.position(place) for place in places]


def by_projection(neurons: Sequence[Neuron]) -> dict[tuple[int, Expert | None], list[int]]:
    """Group neuron indices by down-projection (layer, expert), both ascending."""
    grouped: dict[tuple[int, Expert | None], list[int]] = {}
    for place in in_order(neuron.place for neuron in neurons):
        neuron = neuron_at(place)
        grouped.setdefault((neuron.layer, neuron.expert), []).append(neuron.index)
    return grouped
