"""Check whether an intervention fits a model: another shape is an error, other weights of that shape are a warning.

Two models of the same shape are told apart by a hash of the weight columns of the intervention's neurons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.header import ExpertsInfo, Intervention, ModelInfo
from lm_eval_cna.interventions.vectors import Vectors, tensor_bytes
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.neurons import SHARED, Place, by_projection, neuron_at
from lm_eval_cna.transformer.projection import weight_columns
from lm_eval_cna.transformer.weights import is_packed, kind_of


def check_fit(intervention: Intervention, architecture: Architecture) -> None:
    """Refuse an intervention that was made for a model of another shape.

    Raises:
        InterventionError: the number of layers, the MLP width, the hidden size, the experts or a neuron do not fit.
    """
    ours = shape_of(architecture)
    for field in ("num_layers", "experts", "mlp_width", "hidden_size"):
        wanted, value = getattr(intervention.model, field), getattr(ours, field)
        if wanted is not None and wanted != value:
            raise InterventionError(
                f"{intervention.name} was made for {intervention.model.id or 'a model'} of {_words(field, wanted)}",
                got=f"{architecture.name} of {_words(field, value)}",
                do="discover it on this model",
            )
    if isinstance(intervention, Circuit):
        for neuron in intervention.neurons:
            if not architecture.layout.has(neuron.place):
                owner = "" if neuron.expert is None else f"expert {neuron.expert} of "
                raise InterventionError(
                    f"{intervention.name} names neuron {neuron.index} of {owner}layer {neuron.layer}",
                    allowed=f"{ours.shape} in {architecture.name}",
                )
    elif isinstance(intervention, Vectors):
        if max(intervention.layers) >= len(architecture.layers):
            raise InterventionError(
                f"{intervention.name} names layer {max(intervention.layers)}", allowed=f"{ours.num_layers} layers"
            )
        # The header may leave the width out. `Vectors` makes sure that all have the same.
        width = next(iter(intervention.tensors.values())).shape[0]
        if width != architecture.hidden:
            raise InterventionError(
                f"the vectors of {intervention.name} are {width} wide",
                allowed=f"{architecture.hidden}, the hidden size of {architecture.name}",
                do="discover them on this model",
            )


def fit_warnings(
    intervention: Intervention, architecture: Architecture, *, revision: str | None, chat_template_sha256: str | None
) -> tuple[str, ...]:
    """Warn of differences between the model that an intervention was made on and the one that it is applied to.

    These warnings belong in the results, since a circuit of another model with this shape would steer without an error.
    """
    made, warnings = intervention.model, []
    if made.revision is not None and revision is not None and made.revision != revision:
        warnings.append(f"revision: the circuit was found on {made.revision}, this is {revision}")
    found_with = intervention.discovery.chat_template_sha256
    if found_with is not None and chat_template_sha256 is not None and found_with != chat_template_sha256:
        warnings.append("chat template: the circuit was found with another one")
    dtype = _dtype_name(architecture)
    if made.dtype is not None and made.dtype != dtype:
        warnings.append(f"dtype: the circuit was found in {made.dtype}, this is {dtype}; columns cannot be compared")
    elif made.dtype is not None and is_packed(architecture.layers[0].projections[0].weight):
        warnings.append(f"weights: not verified, since {dtype} has no columns to compare")
    elif made.columns_sha256 is not None:
        ours = columns_sha256(architecture, named_columns(intervention, architecture))
        if ours is None:
            warnings.append("weights: not verified, since they cannot be read")
        elif ours != made.columns_sha256:
            warnings.append("weights: the columns of the named neurons are not those of the model it was found on")
    return tuple(warnings)


def shape_of(architecture: Architecture) -> ModelInfo:
    """The layers, widths and experts of a model; other fields stay None."""
    layout, mixtures = architecture.layout, [layer for layer in architecture.layers if layer.has_experts]
    experts = None
    if mixtures:
        first = [part for part in layout.parts if part.layer == mixtures[0].index]
        experts = ExpertsInfo(
            count=sum(part.expert != SHARED for part in first),
            width=first[0].width,
            shared_width=first[-1].width if first[-1].expert == SHARED else None,
            layers=tuple(layer.index for layer in mixtures),
        )
    return ModelInfo(
        num_layers=len(architecture.layers),
        mlp_width=next((part.width for part in layout.parts if part.expert is None), None),
        experts=experts,
        hidden_size=architecture.hidden,
    )


def identity_of(model: Any, id: str | None = None, revision: str | None = None) -> tuple[str | None, str | None]:
    """A model's name and revision for a header: the given ones, or else those of its configuration."""
    config = getattr(model, "config", None)
    return id or getattr(config, "_name_or_path", None) or None, revision or getattr(config, "_commit_hash", None)


def describe_model(
    architecture: Architecture, neurons: Iterable[Place], *, id: str | None, revision: str | None
) -> ModelInfo:
    """Describe a model for a circuit's header, with a hash of the weight columns of `neurons`."""
    return shape_of(architecture).model_copy(
        update={
            "id": id,
            "revision": revision,
            "architecture": architecture.name,
            "dtype": _dtype_name(architecture),
            "columns_sha256": columns_sha256(architecture, neurons),
        }
    )


def describe_for_vectors(
    architecture: Architecture, layers: Iterable[int], *, id: str | None, revision: str | None
) -> ModelInfo:
    """Describe a model for the header of vectors, which leaves experts out."""
    columns = first_columns(architecture, layers)
    return describe_model(architecture, columns, id=id, revision=revision).model_copy(update={"experts": None})


def first_columns(architecture: Architecture, layers: Iterable[int]) -> list[Place]:
    """The first neuron of each layer."""
    return [architecture.layout.place(architecture.layout.of_layer(layer).start) for layer in layers]


def named_columns(intervention: Intervention, architecture: Architecture) -> list[Place]:
    """The neurons whose columns identify the model: a circuit's own, or the first one of each layer with a vector."""
    if isinstance(intervention, Circuit):
        return list(intervention.places)
    return first_columns(architecture, intervention.layers)


def columns_sha256(architecture: Architecture, neurons: Iterable[Place]) -> str | None:
    """Hash the weight columns of some neurons, in the model's order; None if the weights cannot be read.

    Quantized weights count as unreadable: their rounding depends on the quantizer, its version and the device, so the
    hash would differ for the same model. If a weight is sharded over processes, all of them must call this.
    """
    digest = hashlib.sha256()
    for key, indices in by_projection([neuron_at(place) for place in neurons]).items():
        columns = weight_columns(architecture.projections[key], torch.tensor(indices))
        if columns is None:
            return None
        digest.update(tensor_bytes(columns))
    return digest.hexdigest()


def _dtype_name(architecture: Architecture) -> str:
    first = architecture.layers[0].projections[0]
    return kind_of(first.weight, first.base)


def _words(field: str, value: Any) -> str:
    if not isinstance(value, ExpertsInfo):
        return "no experts" if field == "experts" and value is None else f"{field} {value}"
    shared = "" if value.shared_width is None else f", shared_width {value.shared_width}"
    return f"{value.count} experts of width {value.width}{shared} in {len(value.layers)} layers"
