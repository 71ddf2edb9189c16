"""The neurons of largest mean |activation|: strong neurons, whatever sets the classes apart."""

from __future__ import annotations

from collections.abc import Collection

from lm_eval_cna.discovery.measurement import Measurement
from lm_eval_cna.interventions.circuit import Circuit


def find(
    measurement: Measurement,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    excluded_layers: Collection[int] = (),
    like: Circuit | None = None,
) -> Circuit:
    """The neurons of largest mean |activation| over all prompts, largest first (size: `Measurement.circuit`).

    Given a circuit, `like`, its size, excluded layers and universal neurons are taken instead. Its own neurons may be
    among those found: how many are is the question.

    Raises:
        ConfigError: both sizes are given, a size or layer is out of range, or magnitudes were not read.
    """
    if like is not None:
        top_k, excluded_layers = len(like.neurons), like.discovery.excluded_layers
        measurement = measurement.matched_to(like)
    found = measurement.circuit(
        "top-activation",
        measurement.read("magnitudes"),
        fraction=fraction,
        top_k=top_k,
        excluded_layers=excluded_layers,
        name=f"{measurement.contrast.name}-top-activation",
    )
    # What they are ranked by is no class difference, so the file gives no delta.
    return found.model_copy(update={"neurons": tuple(neuron._replace(delta=None) for neuron in found.neurons)})
