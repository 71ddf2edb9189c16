"""Holm's correction for the many cells of a sweep.

A sweep tests the same metric in many cells, and the smallest of many p values is often below 0.05 by chance. Holm
(1979, Scandinavian Journal of Statistics 6:65) keeps the chance of any false alarm in a family at 5 %, however the
cells depend on each other. A family is one metric of one task in all cells of the methods under test, without controls
and baseline.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


def holm(ps: Mapping[Key, float]) -> dict[Key, float]:
    """Holm-adjusted p of every member of a family; an empty family stays empty.

    The i-th smallest of n p values is multiplied by n - i + 1, and none may be smaller than the one before it.

    Example:
        >>> holm({"a": 0.01, "b": 0.04})
        {'a': 0.02, 'b': 0.04}
    """
    ordered = sorted(ps, key=ps.__getitem__)
    steps = np.array([ps[key] for key in ordered]) * np.arange(len(ordered), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0) if ordered else steps
    found = dict(zip(ordered, adjusted.tolist(), strict=True))
    return {key: found[key] for key in ps}
