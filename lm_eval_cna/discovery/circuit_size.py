"""The size of a circuit: a number of neurons, or a fraction of the model's."""

from __future__ import annotations

from typing import NamedTuple

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.transformer.decoder import Architecture

DEFAULT_FRACTION = 0.001


class CircuitSize(NamedTuple):
    """How large a circuit is."""

    neurons: int
    """Number of neurons."""
    fraction: float | None
    """The fraction of the model's neurons that was asked for; None if a number was asked for."""
    share: float
    """The size as a share of the model's neurons. The universal filter counts the same share as a prompt's top."""


def size_of(architecture: Architecture, fraction: float | None, top_k: int | None) -> CircuitSize:
    """The size of a circuit: `top_k` neurons, or a fraction of the model's, by default 0.001.

    Raises:
        ConfigError: both are given, or one is out of range.
    """
    check_size(fraction, top_k)
    total = architecture.num_neurons
    if top_k is None:
        fraction = DEFAULT_FRACTION if fraction is None else fraction
        return CircuitSize(circuit_size(fraction, total), fraction, fraction)
    if top_k > total:
        raise ConfigError("circuit size", got=top_k, allowed=f"1 to {total}, the model's neurons")
    return CircuitSize(top_k, None, top_k / total)


def check_size(fraction: float | None, top_k: int | None) -> None:
    """Refuse a size that is impossible whatever the model.

    Raises:
        ConfigError: both are given, or one is out of range.
    """
    if fraction is not None and top_k is not None:
        raise ConfigError("a circuit has one size", got=f"fraction {fraction} and top-k {top_k}", do="give one of them")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError("fraction of the model's neurons", got=fraction, allowed="above 0, up to 1")
    if top_k is not None and top_k < 1:
        raise ConfigError("circuit size", got=top_k, allowed="1 or more neurons")


def circuit_size(fraction: float, neurons: int) -> int:
    """A circuit's number of neurons: round(fraction * neurons of the model), at least 1 (arXiv 2605.12290).

    Raises:
        ConfigError: the fraction is not in (0, 1].

    Example:
        >>> circuit_size(0.001, 16 * 8192)
        131
    """
    check_size(fraction, None)
    return max(1, round(fraction * neurons))
