"""From a model and a contrast set to one intervention, controls included.

To make several from the same prompts, `measuring.measure` once and ask the `Measurement` for each.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.discovery.circuit_size import DEFAULT_FRACTION, check_size, size_of
from lm_eval_cna.discovery.controls import control
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.interventions.header import MATCHES, Match
from lm_eval_cna.interventions.methods import METHODS, READS, Method
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import find_architecture

#: Arguments that a method would ignore are refused.
_ARGUMENTS: dict[str, set[str]] = {
    "cna": {"fraction", "top_k", "excluded_layers"},
    "caa": set(),
    "caa-residual": {"layer"},
    "top-activation": {"fraction", "top_k", "excluded_layers", "like"},
    "random": {"like"},
    "random-vectors": {"like"},
}


def check_request(
    method: str,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    excluded_layers: Collection[int] = (),
    layer: int | None = None,
    like: Circuit | Vectors | None = None,
    match: str = "layer",
) -> None:
    """Refuse what can be seen to be wrong in the arguments of `discover` before there is a model.

    Raises:
        ConfigError: an argument is missing, out of range, or has no meaning for the method.
    """
    if method not in METHODS:
        raise ConfigError("method", got=method, allowed=", ".join(METHODS))
    given = {"fraction": fraction, "top_k": top_k, "excluded_layers": excluded_layers or None, "layer": layer}
    for name, value in {**given, "like": like}.items():
        if value is not None and name not in _ARGUMENTS[method]:
            raise ConfigError(f"{name.replace('_', '-')} has no meaning for method {method}", do="leave it out")
    check_size(fraction, top_k)
    if match not in MATCHES:
        raise ConfigError("match", got=match, allowed=", ".join(MATCHES))
    if match != "layer" and method != "random":
        raise ConfigError(f"match has no meaning for method {method}", do="leave it out")
    if "like" not in _ARGUMENTS[method] or (method == "top-activation" and like is None):
        return
    if method == "top-activation" and any(value is not None for value in given.values()):
        raise ConfigError("a circuit to match gives size and layers itself", do="give --like, or these, not both")
    kind = Vectors if method == "random-vectors" else Circuit
    if not isinstance(like, kind):
        raise ConfigError(
            f"{method} is matched to an intervention",
            got=None if like is None else like.method,
            allowed="a circuit" if kind is Circuit else "vectors",
            do="give it with --like FILE",
        )


def discover(
    model: Any,
    tokenizer: Any,
    contrast: ContrastSet | None,
    *,
    method: Method = "cna",
    fraction: float | None = None,
    top_k: int | None = None,
    excluded_layers: Collection[int] = (),
    universal_filter: bool = True,
    layer: int | None = None,
    like: Circuit | Vectors | None = None,
    seed: int = 0,
    match: Match = "layer",
    check_leakage: bool = True,
    settings: Settings | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> Circuit | Vectors:
    """Make one intervention.

    Args:
        model: a transformers model of a known architecture.
        tokenizer: its tokenizer.
        contrast: the prompts; controls need none, except for `match="activation"`.
        method: see DESIGN section 2.
        fraction: size of a circuit as a share of the model's neurons; 0.001 by default. It is also the share that
            makes a universal neuron.
        top_k: size of a circuit in neurons, instead of `fraction`.
        excluded_layers: layers without circuit neurons.
        universal_filter: leave out neurons that are active on everything.
        layer: the layer of `caa-residual`.
        like: what a control is matched to: a circuit for `random`, vectors for `random-vectors`, and a circuit for
            `top-activation`, instead of size and layers.
        seed: the control's seed.
        match: where `random` draws; see `control`.
        check_leakage: as in `measure`.
        settings: how prompts are rendered and run.
        model_id: written into the files; by default what the model says of itself.
        revision: likewise.

    Raises:
        ConfigError: an argument is missing, out of range, or has no meaning for the method.
        CNAError: as in `measure`.
    """
    check_request(
        method, fraction=fraction, top_k=top_k, excluded_layers=excluded_layers, layer=layer, like=like, match=match
    )
    if like is not None and method != "top-activation":
        magnitudes = None
        if match == "activation":
            if contrast is None:
                raise ConfigError("activation-matched controls need a contrast set", do="give it with --contrast")
            check_fit(like, find_architecture(model))
            magnitudes = measure(
                model,
                tokenizer,
                contrast,
                read=("magnitudes",),
                universal_filter=False,
                check_leakage=False,
                settings=settings,
            ).means.magnitudes
        return control(model, like, seed=seed, match=match, magnitudes=magnitudes, model_id=model_id, revision=revision)
    if contrast is None:
        raise ConfigError(f"{method} needs a contrast set")
    universal_fraction = DEFAULT_FRACTION
    architecture = find_architecture(model)
    if like is not None:
        check_fit(like, architecture)
    elif method in ("cna", "top-activation"):
        universal_fraction = size_of(architecture, fraction, top_k).share
    measurement = measure(
        model,
        tokenizer,
        contrast,
        read=(READS[method],),
        universal_filter=universal_filter and like is None,
        universal_fraction=universal_fraction,
        check_leakage=check_leakage,
        settings=settings,
        model_id=model_id,
        revision=revision,
    )
    if method == "cna":
        return measurement.circuit(fraction=fraction, top_k=top_k, excluded_layers=excluded_layers)
    if method == "top-activation":
        matched = cast("Circuit | None", like)
        return measurement.top_activation(fraction=fraction, top_k=top_k, excluded_layers=excluded_layers, like=matched)
    return measurement.vectors() if method == "caa" else measurement.residual_vector(layer)
