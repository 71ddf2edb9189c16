"""From a model and a contrast set to one intervention, controls included.

To make several from the same prompts, `measure` once and give the `Measurement` to each method's finder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, cast

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.discovery.circuit_size import DEFAULT_FRACTION, check_size, size_of
from lm_eval_cna.discovery.measurement import Measurement, Settings, measure
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.interventions.header import MATCHES, Match
from lm_eval_cna.interventions.methods import IN_FILES, METHODS, Read
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import find_architecture


def finder_of(method: str) -> Callable[..., Any]:
    """The function that makes a method's intervention, from a `Measurement`, or for a control from model and `like`."""
    module, _, function = METHODS[method].finder.partition(":")
    finder: Callable[..., Any] = getattr(import_module(module), function)
    return finder


def arguments_of(method: str) -> dict[str, bool]:
    """What a method takes beside the measurement or the model -> whether it must be given."""
    _, *taken = signature(finder_of(method)).parameters.values()
    return {parameter.name: parameter.default is Parameter.empty for parameter in taken}


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
    """Refuse arguments of `discover` that are wrong whatever the model is.

    Raises:
        ConfigError: an argument is missing, out of range, or has no meaning for the method.
    """
    if method not in IN_FILES:
        raise ConfigError("method", got=method, allowed=", ".join(IN_FILES))
    if match not in MATCHES:
        raise ConfigError("match", got=match, allowed=", ".join(MATCHES))
    sized = _given(fraction=fraction, top_k=top_k, excluded_layers=excluded_layers or None, layer=layer)
    taken = arguments_of(method)
    for name in (*sized, *_given(like=like, match=None if match == "layer" else match)):
        if name not in taken:
            raise ConfigError(f"{name.replace('_', '-')} has no meaning for method {method}", do="leave it out")
    check_size(fraction, top_k)
    if like is not None and sized:
        raise ConfigError("a circuit to match gives size and layers itself", do="give --like, or these, not both")
    of_vectors = METHODS[method].acts != "neurons"
    if (like is None and taken.get("like")) or (like is not None and isinstance(like, Vectors) is not of_vectors):
        raise ConfigError(
            f"{method} is matched to an intervention",
            got=None if like is None else like.method,
            allowed="vectors" if of_vectors else "a circuit",
            do="give it with --like FILE",
        )


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def discover(
    model: Any,
    tokenizer: Any,
    contrast: ContrastSet | None,
    *,
    method: str = "cna",
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
        method: one of `lm_eval_cna.interventions.methods.IN_FILES`.
        fraction: size of a circuit as a share of the model's neurons; 0.001 by default. It is also the share that
            makes a universal neuron.
        top_k: size of a circuit in neurons, instead of `fraction`.
        excluded_layers: layers without circuit neurons.
        universal_filter: leave out neurons that are active on everything.
        layer: the layer of `caa-residual`.
        like: what a control is matched to: a circuit for `random`, vectors for `random-vectors`, and a circuit for
            `top-activation`, instead of size and layers.
        seed: the control's seed.
        match: where `random` draws; see `draw_neurons`.
        check_leakage: as in `measure`.
        settings: how prompts are rendered and run.
        model_id: written into the files; by default what the model says of itself.
        revision: likewise.

    Raises:
        ConfigError: an argument is missing, out of range, or has no meaning for the method.
        CNAError: as in `measure`.

    Example:
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> from lm_eval_cna import discover, load_contrast
        >>> from lm_eval_cna.organism.store import ensure_organism
        >>> name = str(ensure_organism().instruct)
        >>> model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        >>> circuit = discover(model, tokenizer, load_contrast("organism"), top_k=20)
        >>> circuit.method, len(circuit.neurons)
        ('cna', 20)
    """
    check_request(
        method, fraction=fraction, top_k=top_k, excluded_layers=excluded_layers, layer=layer, like=like, match=match
    )
    row, taken, architecture = METHODS[method], arguments_of(method), find_architecture(model)
    if like is not None:
        check_fit(like, architecture)
    if contrast is None and (match == "activation" or not row.is_control):
        why = f"{method} needs" if row.reads else "activation-matched controls need"
        raise ConfigError(f"{why} a contrast set", do="give it with --contrast")

    def measured(read: Read, **options: Any) -> Measurement:
        return measure(model, tokenizer, cast(ContrastSet, contrast), read=(read,), settings=settings, **options)

    identity = {"model_id": model_id, "revision": revision}
    if row.reads is None:
        matching: dict[str, Any] = {"match": match} if "match" in taken else {}
        if match == "activation":
            found = measured("magnitudes", universal_filter=False, check_leakage=False)
            matching["magnitudes"] = found.means.magnitudes
        drawn: Circuit | Vectors = finder_of(method)(model, like, seed=seed, **matching, **identity)
        return drawn
    sized = row.acts == "neurons" and like is None
    measurement = measured(
        row.reads,
        universal_filter=universal_filter and like is None,
        universal_fraction=size_of(architecture, fraction, top_k).share if sized else DEFAULT_FRACTION,
        check_leakage=check_leakage,
        **identity,
    )
    asked = _given(fraction=fraction, top_k=top_k, excluded_layers=excluded_layers or None, layer=layer, like=like)
    made: Circuit | Vectors = finder_of(method)(measurement, **asked)
    return made
