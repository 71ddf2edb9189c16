"""Comparison of what a model answered: texts and flags to the letter, log-likelihoods within float32's rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def alike(found: Any, expected: Any, *, within: float = 1e-4) -> bool:
    """Whether two nests of mappings and sequences are equal, their floats within `within` or float32's resolution."""
    if isinstance(expected, float):
        return isinstance(found, float) and abs(found - expected) <= max(within, 2e-7 * abs(expected))
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(alike(found[k], expected[k], within=within) for k in expected)
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        return len(found) == len(expected) and all(
            alike(f, e, within=within) for f, e in zip(found, expected, strict=True)
        )
    return bool(found == expected)
