"""Whether an intervention fits a model: shapes refuse, identity warns.

Floor 1. Two models of one shape are told apart by a hash of the weight columns that the intervention names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from lm_eval_cna.architecture import Architecture, weight_columns
from lm_eval_cna.errors import InterventionError
from lm_eval_cna.intervention import Circuit, Intervention, Vectors, tensor_bytes
from lm_eval_cna.placement import is_packed, kind_of
from lm_eval_cna.provenance import ModelInfo


def check_fit(intervention: Intervention, architecture: Architecture) -> None:
    """Refuse an intervention that was made for a model of another shape.

    Raises:
        InterventionError: layers, MLP width, hidden width or a neuron do not fit.
    """
    ours = {"num_layers": len(architecture.layers), "mlp_width": architecture.width, "hidden_size": architecture.hidden}
    for field, value in ours.items():
        wanted = getattr(intervention.model, field)
        if wanted is not None and wanted != value:
            raise InterventionError(
                f"{intervention.name} was made for {intervention.model.id or 'a model'} of {field} {wanted}",
                got=f"{architecture.name} of {field} {value}",
                do="discover it on this model",
            )
    if isinstance(intervention, Circuit):
        for layer, index, _ in intervention.neurons:
            if layer >= ours["num_layers"] or index >= ours["mlp_width"]:
                raise InterventionError(
                    f"{intervention.name} names neuron {index} of layer {layer}",
                    allowed=f"{ours['num_layers']} layers of {ours['mlp_width']} neurons in {architecture.name}",
                )
    elif isinstance(intervention, Vectors):
        if max(intervention.layers) >= ours["num_layers"]:
            raise InterventionError(
                f"{intervention.name} names layer {max(intervention.layers)}", allowed=f"{ours['num_layers']} layers"
            )
        # The header need not say how wide the vectors are; they are of one width, Vectors makes sure of that.
        width = next(iter(intervention.tensors.values())).shape[0]
        if width != ours["hidden_size"]:
            raise InterventionError(
                f"the vectors of {intervention.name} are {width} wide",
                allowed=f"{ours['hidden_size']}, the hidden size of {architecture.name}",
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
    elif made.dtype is not None and is_packed(architecture.layers[0].weight):
        warnings.append(f"weights: not verified, since {dtype} has no columns to compare")
    elif made.columns_sha256 is not None:
        ours = columns_sha256(architecture, named_columns(intervention))
        if ours is None:
            warnings.append("weights: not verified, since they cannot be read")
        elif ours != made.columns_sha256:
            warnings.append("weights: the columns of the named neurons are not those of the model it was found on")
    return tuple(warnings)


def describe_model(
    architecture: Architecture, neurons: Iterable[tuple[int, int]], *, id: str | None, revision: str | None
) -> ModelInfo:
    """Write down the model for an intervention's header; `neurons` are those whose columns are hashed."""
    return ModelInfo(
        id=id,
        revision=revision,
        architecture=architecture.name,
        num_layers=len(architecture.layers),
        mlp_width=architecture.width,
        hidden_size=architecture.hidden,
        dtype=_dtype_name(architecture),
        columns_sha256=columns_sha256(architecture, neurons),
    )


def named_columns(intervention: Intervention) -> list[tuple[int, int]]:
    """The neurons whose columns identify the model: a circuit's own, or neuron 0 of every layer of vectors."""
    if isinstance(intervention, Circuit):
        return [(neuron.layer, neuron.index) for neuron in intervention.neurons]
    return [(layer, 0) for layer in intervention.layers]


def columns_sha256(architecture: Architecture, neurons: Iterable[tuple[int, int]]) -> str | None:
    """Hash of the named neurons' weight columns, in (layer, index) order; None where they cannot be read.

    A quantized weight has none: what the same model's columns are after rounding depends on the quantizer, its version
    and its device, so a hash of them would differ where nothing is wrong. Where a weight is cut over processes, all of
    them must call this.
    """
    digest = hashlib.sha256()
    ordered = sorted(neurons)
    for layer in architecture.layers:
        indices = [index for at, index in ordered if at == layer.index]
        if not indices:
            continue
        columns = weight_columns(layer, torch.tensor(indices))
        if columns is None:
            return None
        digest.update(tensor_bytes(columns))
    return digest.hexdigest()


def _dtype_name(architecture: Architecture) -> str:
    layer = architecture.layers[0]
    return kind_of(layer.weight, layer.projection)
