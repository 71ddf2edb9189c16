"""The header of every intervention file: the model that it was made on, and how it was found."""

from __future__ import annotations

import platform
from bisect import bisect_left
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import write_whole
from lm_eval_cna.files.records import Record
from lm_eval_cna.transformer.neurons import SHARED, Expert

LayerIndex = Annotated[int, Field(ge=0, le=100_000)]
NeuronIndex = Annotated[int, Field(ge=0, le=2**31)]
Depth = Annotated[int, Field(ge=1, le=100_001)]
Width = Annotated[int, Field(ge=1, le=2**31)]
ExpertName = Annotated[int, Field(ge=0, le=100_000)] | Literal["shared"]
#: From which neurons a random control is drawn: those of the circuit's layers, those of these layers with a similar
#: mean |activation|, or all of the bottom, middle or top third of the layers.
Match = Literal["layer", "activation", "bottom", "middle", "top"]
MATCHES: tuple[Match, ...] = get_args(Match)
_version = cache(version)  # reading a package's metadata takes milliseconds

_Place = (
    Annotated[tuple[LayerIndex, NeuronIndex], Field(strict=False)]
    | Annotated[tuple[LayerIndex, ExpertName, NeuronIndex], Field(strict=False)]
)


class ExpertsInfo(Record):
    """The mixture-of-experts layers of a model."""

    count: Annotated[int, Field(ge=1, le=100_000)]
    """Routed experts in each of these layers."""
    width: Width
    """Neurons of a routed expert."""
    shared_width: Width | None = None
    """Neurons of the shared expert; None if there is no shared expert."""
    layers: Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=100_001, strict=False)]
    """The layers with experts, ascending; the other layers have a dense MLP."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError("the layers with experts must be named once each, in ascending order")
        return self

    def has(self, layer: int) -> bool:
        """Whether a layer has experts."""
        at = bisect_left(self.layers, layer)
        return at < len(self.layers) and self.layers[at] == layer


class ModelInfo(Record):
    """The model that an intervention was made on; a file from elsewhere may leave fields out."""

    id: str | None = None
    """The name or path that it was loaded from."""
    revision: str | None = None
    """The commit on the hub."""
    architecture: str | None = None
    """Class name of the model."""
    num_layers: Depth | None = None
    """Number of decoder layers."""
    mlp_width: Width | None = None
    """Neurons in the MLP of a dense layer; None if all layers have experts."""
    experts: ExpertsInfo | None = None
    """The experts of a mixture-of-experts model; the file of any other model does not have this field."""
    hidden_size: Width | None = None
    """Width of the residual stream."""
    dtype: str | None = None
    """Data type of the weights, or how a quantizer packs them."""
    columns_sha256: str | None = None
    """Hash of the weight columns of the intervention's neurons, which tells models of one shape apart."""

    @model_validator(mode="after")
    def _deep_enough(self) -> Self:
        if self.experts is not None and (self.num_layers is None or self.experts.layers[-1] >= self.num_layers):
            depth = f"{self.num_layers} layers" if self.num_layers else "a depth that is not named"
            raise ValueError(f"layer {self.experts.layers[-1]} has experts in a model of {depth}")
        return self

    @model_serializer(mode="wrap")
    def _without_absent_experts(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return fields if self.experts is not None else {k: v for k, v in fields.items() if k != "experts"}

    @property
    def num_neurons(self) -> int | None:
        """Neurons of the whole model; None if the header does not give its shape."""
        experts = self.experts
        mixed = 0 if experts is None else len(experts.layers)
        dense = None if self.num_layers is None else self.num_layers - mixed
        if dense is None or (dense and self.mlp_width is None):
            return None
        found = dense * (self.mlp_width or 0)
        if experts is not None:
            found += mixed * (experts.count * experts.width + (experts.shared_width or 0))
        return found

    def width_of(self, layer: int, expert: Expert | None) -> int | None:
        """Neurons of a down-projection; None if the header does not give it.

        Raises:
            ValueError: the model has no such expert, or the layer has experts and none is named.
        """
        experts = self.experts
        if experts is None or not experts.has(layer):
            if expert is not None and (experts is not None or self.mlp_width is not None):
                raise ValueError(f"expert {expert} is named, and layer {layer} has none")
            return self.mlp_width
        if expert is None:
            raise ValueError(f"no expert is named, and layer {layer} has {experts.count}")
        if expert == SHARED:
            if experts.shared_width is None:
                raise ValueError(f"the shared expert is named, and layer {layer} has none")
            return experts.shared_width
        if expert >= experts.count:
            raise ValueError(f"expert {expert} is outside layer {layer}'s {experts.count}")
        return experts.width

    @property
    def shape(self) -> str | None:
        """Layers and neurons in words, for messages and tables; None if unknown."""
        if self.num_layers is None:
            return None
        if self.experts is None:
            return f"{self.num_layers} layers of {self.mlp_width} neurons"
        experts = self.experts
        mixed = f"{experts.count} experts of {experts.width} neurons"
        if experts.shared_width is not None:
            mixed += f" and a shared one of {experts.shared_width}"
        if len(experts.layers) == self.num_layers:
            return f"{self.num_layers} layers of {mixed}"
        dense = self.num_layers - len(experts.layers)
        return f"{len(experts.layers)} layers of {mixed}, {dense} of {self.mlp_width} neurons"


class UniversalFilter(Record):
    """The neurons that were left out because they are active on almost every prompt."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the model's neurons that count as the most active ones on a prompt, 0 to 1."""
    share: Annotated[float, Field(gt=0, le=1)]
    """A neuron is universal if it is among the most active ones on this share of the prompts or more, 0 to 1."""
    prompts: Annotated[int, Field(ge=1)]
    """Number of prompts, of many kinds."""
    prompts_sha256: str
    """Hash of the prompts."""
    neurons: tuple[_Place, ...] = Field(default=(), strict=False)
    """The universal neurons, as (layer, index) or (layer, expert, index)."""


class DiscoveryInfo(Record):
    """How an intervention was found, in enough detail to find it again; fields that do not apply are None."""

    contrast: str | None = None
    contrast_sha256: str | None = None
    positive: int | None = None
    negative: int | None = None
    fraction: float | None = None
    top_k: int | None = None
    excluded_layers: tuple[int, ...] = Field(default=(), strict=False)
    universal_filter: UniversalFilter | None = None
    chat_template_sha256: str | None = None
    leakage: str | None = None
    layer: int | None = None
    seed: int | None = None
    match: str | None = None
    like_sha256: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str | None = None


def stamp() -> dict[str, Any]:
    """The versions in use and the current time, as fields of `DiscoveryInfo`."""
    versions = {name: _version(name) for name in ("torch", "transformers")}
    versions |= {"lm_eval_cna": _version("lm-eval-cna"), "python": platform.python_version()}
    return {"versions": versions, "created": datetime.now(UTC).isoformat(timespec="seconds")}


class Intervention(Record):
    """The common part of circuits and vectors: their name and origin."""

    name: str
    model: ModelInfo = Field(default_factory=ModelInfo)
    discovery: DiscoveryInfo = Field(default_factory=DiscoveryInfo)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that steering changes, ascending."""
        raise NotImplementedError

    @property
    def sha256(self) -> str:
        """Hash of everything that affects steering; the origin and the deltas do not."""
        raise NotImplementedError


def write_intervention(path: Path, data: bytes) -> None:
    """Write an intervention file whole, or not at all.

    Raises:
        InterventionError: the file cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise InterventionError(f"cannot write {path}: {error.strerror or error}") from error
