"""Holm's correction for the many cells of a sweep.

A sweep asks the same question at every multiplier, of CNA and of CAA, and the smallest of a dozen p values is below
0.05 more often than one time in twenty. Holm (1979, Scandinavian Journal of Statistics 6:65) holds the chance of any
false alarm in a family at 5 %, however the cells depend on each other. A family is one metric of one task over all
cells of the methods under test; controls and the baseline are not in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


def holm(ps: Mapping[Key, float]) -> dict[Key, float]:
    """Holm-adjusted p of every member of a family; an empty family stays empty.

    The i-th smallest of n is multiplied by n - i + 1, and none may be below one before it. Not by statsmodels'
    `multipletests`, which gives the same (a test compares them) but collects the interpreter's garbage on every call:
    60 ms for each metric of a report.
    """
    ordered = sorted(ps, key=ps.__getitem__)
    steps = np.array([ps[key] for key in ordered]) * np.arange(len(ordered), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1.0) if ordered else steps
    found = dict(zip(ordered, adjusted.tolist(), strict=True))
    return {key: found[key] for key in ps}
