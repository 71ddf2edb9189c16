"""Whether an intervention fits a model: shapes refuse, identity warns.

Two models of one shape are told apart by a hash of the weight columns that the intervention names.
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
        InterventionError: layers, MLP width, hidden width or a neuron do not fit.
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
        # The header need not say how wide the vectors are; they are of one width, Vectors makes sure of that.
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
    """What differs between the model an intervention was made on and the one it is applied to.

    The answer belongs in the results: a wrong circuit of the right shape steers without complaint.
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
    """Layers, widths and experts of a model, nothing else."""
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
    """What a header calls a model, and its revision: what is given, or else what the model says of itself."""
    config = getattr(model, "config", None)
    said = getattr(config, "_name_or_path", None), getattr(config, "_commit_hash", None)
    return id or said[0] or None, revision or said[1]


def describe_model(
    architecture: Architecture, neurons: Iterable[Place], *, id: str | None, revision: str | None
) -> ModelInfo:
    """Write down the model for a circuit's header; `neurons` are those whose columns are hashed."""
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
    """Write down the model for the header of vectors, which have nothing to do with experts."""
    columns = first_columns(architecture, layers)
    return describe_model(architecture, columns, id=id, revision=revision).model_copy(update={"experts": None})


def first_columns(architecture: Architecture, layers: Iterable[int]) -> list[Place]:
    """The first neuron of each layer."""
    return [architecture.layout.place(architecture.layout.of_layer(layer).start) for layer in layers]


def named_columns(intervention: Intervention, architecture: Architecture) -> list[Place]:
    """The neurons whose columns identify the model: a circuit's own, or the first of every layer of vectors."""
    if isinstance(intervention, Circuit):
        return list(intervention.places)
    return first_columns(architecture, intervention.layers)


def columns_sha256(architecture: Architecture, neurons: Iterable[Place]) -> str | None:
    """Hash of the named neurons' weight columns, in the model's order; None where they cannot be read.

    A quantized weight has none: what the same model's columns are after rounding depends on the quantizer, its version
    and its device, so a hash of them would differ where nothing is wrong. Where a weight is cut over processes, all of
    them must call this.
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
