"""Choose between fold and hook: which of them is possible, and exact, for an intervention on a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.experts import why_not_hook
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.projection import Projection
from lm_eval_cna.transformer.weights import is_cut, is_offloaded, is_packed, is_plain, kind_of, local

Mode = Literal["auto", "fold", "hook"]
MODES: tuple[Mode, ...] = ("auto", "fold", "hook")


def resolve_mode(
    intervention: Circuit | Vectors, architecture: Architecture, model: nn.Module, mode: Mode
) -> Literal["fold", "hook"]:
    """Choose fold or hook, one mode for all layers.

    Raises:
        SteeringError: some layer cannot be steered in the mode; the message gives the reason.
    """
    if isinstance(intervention, Vectors):
        if mode == "fold":
            raise SteeringError("vectors cannot be folded", got=mode, allowed="auto, hook")
        return "hook"
    touched = [architecture.projections[key] for key in intervention.by_projection()]
    not_folded = None
    if mode != "hook":
        shared = _shared_storages(model)
        not_folded = _first(_why_not_fold(projection, shared) for projection in touched)
        if not_folded is None:
            return "fold"
        if mode == "fold":
            raise SteeringError(f"cannot fold: {not_folded}", got=mode, allowed="auto, hook")
    not_hooked = _first(why_not_hook(projection) for projection in touched if projection.is_routed)
    if not_hooked is not None:
        reasons = f"cannot hook: {not_hooked}" if not_folded is None else f"cannot fold: {not_folded}; nor {not_hooked}"
        raise SteeringError(reasons, got=mode, allowed="auto, fold" if mode == "hook" else None)
    return "hook"


def _first(reasons: Iterator[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def _why_not_fold(projection: Projection, shared: set[int]) -> str | None:
    """The reason why a weight cannot be edited in place, or None."""
    weight = projection.weight
    if projection.has_adapter:
        return f"{projection.name} carries an adapter, which a folded weight would not scale"
    if is_offloaded(weight, projection.base):
        return f"{projection.name} is offloaded and loaded again at every call"
    if weight is None or is_packed(weight) or not is_plain(local(weight)):
        return f"{projection.name} is quantized ({kind_of(weight, projection.base)}), and its columns are packed"
    if local(weight).untyped_storage().data_ptr() in shared:
        return f"{projection.name} shares its storage with another parameter"
    return None


def _shared_storages(model: nn.Module) -> set[int]:
    """Addresses of memory that more than one of the model's parameters uses."""
    seen = Counter(
        local(parameter).untyped_storage().data_ptr()
        for _, parameter in model.named_parameters(remove_duplicate=False)
        if (is_cut(parameter) and parameter.device.type != "meta") or is_plain(parameter)
    )
    return {address for address, count in seen.items() if count > 1}
