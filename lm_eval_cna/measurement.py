"""What one pass over a contrast set showed of a model, and every intervention that it can give.

Floor 3. `measuring.measure` runs the model; the `Measurement` then yields a circuit of any size and vectors without
running it again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lm_eval_cna import discovery
from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.splits import Split
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import describe_for_vectors, describe_model
from lm_eval_cna.interventions.header import DiscoveryInfo, ModelInfo
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.means import Means
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.neurons import Neuron, Place

DEFAULT_FRACTION = 0.001


@dataclass(frozen=True)
class Measurement:
    """What one pass over a contrast set showed of a model.

    Attributes:
        architecture: the model that was measured (it stays in memory as long as this does).
        contrast: the prompts.
        means: class means, positive first.
        info: the header that every intervention made from this shares.
        model_id: where the model came from.
        revision: its revision.
        split: how the prompts were split into folds, where they were.
        by_group: means of the split's groups, which `means` are put together from.
    """

    architecture: Architecture
    contrast: ContrastSet
    means: Means
    info: DiscoveryInfo
    model_id: str | None = None
    revision: str | None = None
    split: Split | None = None
    by_group: Means | None = None

    @property
    def universal(self) -> tuple[Place, ...]:
        """The universal neurons that circuits leave out."""
        return () if self.info.universal_filter is None else self.info.universal_filter.neurons

    def circuit(
        self,
        *,
        fraction: float | None = None,
        top_k: int | None = None,
        excluded_layers: Collection[int] = (),
        name: str | None = None,
    ) -> Circuit:
        """The neurons of largest |mean(positive) - mean(negative)|; `fraction` defaults to 0.001.

        Raises:
            ConfigError: both sizes are given, a size or layer is out of range, or neurons were not read.
        """
        size = size_of(self.architecture, fraction, top_k)
        delta = discovery.mean_difference(_read(self.means.neurons, "neurons"))
        neurons = self._ranked(delta, size, excluded_layers, self.universal)
        return Circuit(
            method="cna",
            name=name or self.contrast.name,
            model=self._model(neurons),
            discovery=_sized(self.info, size, excluded_layers),
            neurons=neurons,
        )

    def top_activation(
        self,
        *,
        fraction: float | None = None,
        top_k: int | None = None,
        excluded_layers: Collection[int] = (),
        like: Circuit | None = None,
        name: str | None = None,
    ) -> Circuit:
        """The neurons of largest mean |activation| over all prompts: strong neurons, whatever sets the classes apart.

        Args:
            fraction: size as a share of the model's neurons; 0.001 by default.
            top_k: size in neurons, instead of `fraction`.
            excluded_layers: layers to leave out.
            like: a circuit whose size, excluded layers and universal neurons are taken, instead of all of these. Its
                own neurons may be among the found ones: how many is the question.
            name: by default the contrast set's.

        Raises:
            ConfigError: both sizes are given, a size or layer is out of range, or magnitudes were not read.
        """
        info = self.info
        if like is not None:
            top_k, excluded_layers = len(like.neurons), like.discovery.excluded_layers
            found_as = {"universal_filter": like.discovery.universal_filter, "like_sha256": like.sha256}
            info = info.model_copy(update=found_as)
        size = size_of(self.architecture, fraction, top_k)
        universal = () if info.universal_filter is None else info.universal_filter.neurons
        magnitudes = _read(self.means.magnitudes, "magnitudes")
        ranked = self._ranked(magnitudes, size, excluded_layers, universal)
        return Circuit(
            method="top-activation",
            name=f"{name or self.contrast.name}-top-activation",
            model=self._model(ranked),
            discovery=_sized(info, size, excluded_layers),
            neurons=tuple(n._replace(delta=None) for n in ranked),  # what they were ranked by is no class difference
        )

    def vectors(self, *, name: str | None = None) -> Vectors:
        """CAA: in every layer, the class difference of what the MLP adds to the residual stream.

        Raises:
            ConfigError: writes were not read.
        """
        tensors = discovery.caa_vectors(_read(self.means.writes, "writes"))
        return Vectors(
            method="caa",
            place="write",
            name=name or self.contrast.name,
            model=self._model_of_vectors(tensors),
            discovery=self.info.model_copy(update={"universal_filter": None}),
            tensors=tensors,
        )

    def residual_vector(self, layer: int | None = None, *, name: str | None = None) -> Vectors:
        """CAA in one layer's residual stream; without `layer`, the one that `discovery.residual_layer` chooses.

        Raises:
            ConfigError: the layer is not in the model, or blocks were not read.
        """
        tensors = discovery.residual_vector(_read(self.means.blocks, "blocks"), layer)
        return Vectors(
            method="caa-residual",
            place="block",
            name=name or self.contrast.name,
            model=self._model_of_vectors(tensors),
            discovery=self.info.model_copy(update={"universal_filter": None, "layer": next(iter(tensors))}),
            tensors=tensors,
        )

    def _ranked(
        self, values: torch.Tensor, size: Size, excluded_layers: Collection[int], universal: Sequence[Place]
    ) -> tuple[Neuron, ...]:
        return discovery.rank_neurons(
            values, self.architecture.layout, size.neurons, excluded_layers=excluded_layers, universal=universal
        )

    def _model(self, neurons: Sequence[Neuron]) -> ModelInfo:
        places = [neuron.place for neuron in neurons]
        return describe_model(self.architecture, places, id=self.model_id, revision=self.revision)

    def _model_of_vectors(self, layers: Collection[int]) -> ModelInfo:
        return describe_for_vectors(self.architecture, layers, id=self.model_id, revision=self.revision)


class Size(NamedTuple):
    """How large a circuit is.

    Attributes:
        neurons: how many it has.
        fraction: the share of the model's neurons that was asked for; None where a number of them was.
        share: the share of the model's neurons that it comes to. It is also what makes a universal neuron: being among
            so many of a prompt's most active.
    """

    neurons: int
    fraction: float | None
    share: float


def size_of(architecture: Architecture, fraction: float | None, top_k: int | None) -> Size:
    """The size of a circuit: `top_k` neurons, or a fraction of the model's, 0.001 where neither is given.

    Raises:
        ConfigError: both are given, or one is out of range.
    """
    check_size(fraction, top_k)
    every = architecture.num_neurons
    if top_k is None:
        fraction = DEFAULT_FRACTION if fraction is None else fraction
        return Size(discovery.circuit_size(fraction, every), fraction, fraction)
    if top_k > every:
        raise ConfigError("circuit size", got=top_k, allowed=f"1 to {every}, the model's neurons")
    return Size(top_k, None, top_k / every)


def check_size(fraction: float | None, top_k: int | None) -> None:
    """Refuse a size that no model's circuit can have.

    Raises:
        ConfigError: both are given, or one is out of range.
    """
    if fraction is not None and top_k is not None:
        raise ConfigError("a circuit has one size", got=f"fraction {fraction} and top-k {top_k}", do="give one of them")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError("fraction of the model's neurons", got=fraction, allowed="above 0, up to 1")
    if top_k is not None and top_k < 1:
        raise ConfigError("circuit size", got=top_k, allowed="1 or more neurons")


def _sized(info: DiscoveryInfo, size: Size, excluded_layers: Collection[int]) -> DiscoveryInfo:
    """The header of a circuit of a size."""
    excluded = tuple(sorted(set(excluded_layers)))
    return info.model_copy(update={"fraction": size.fraction, "top_k": size.neurons, "excluded_layers": excluded})


def _read(means: Any, what: str) -> Any:
    if means is None:
        raise ConfigError(f"{what} were not read in this measurement", do=f"measure with read=({what!r},)")
    return means
