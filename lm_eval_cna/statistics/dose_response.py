"""Dose-response: does a metric rise or fall steadily as the multiplier grows, on the same prompts?

Page's trend test (Page 1963, Journal of the American Statistical Association 58:216). Most values are 0 or 1, so most
ranks are tied; the textbook test and scipy's `page_trend_test` assume no ties and are far too cautious here. This p is
conditional on the ties of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.statistics.paired import Document
from lm_eval_cna.statistics.rates import RESAMPLES, SEED

Floats = NDArray[np.float64]
_LEAST_DOSES = 3
_MOST_EXACT = 12  # multipliers; the subsets of more of them are too many to list


class Trend(AnalysisRecord):
    """How a metric changes with the multiplier."""

    multipliers: tuple[float, ...]
    """Ascending, 1 among them where the sweep has a baseline."""
    means: tuple[float, ...]
    """Mean of the metric at each multiplier, over the documents that have a value at every multiplier."""
    n: int
    """Number of those documents."""
    left_out: int
    """Number of documents that lack a value at some multiplier."""
    slope: float
    """Least-squares change of the mean per unit of multiplier."""
    monotone: bool
    """Whether the means only rise or only fall."""
    p: float
    """Two-sided p of Page's test; 1 if nothing changes."""

    @property
    def rising(self) -> bool | None:
        """Whether the metric rises with the multiplier; None if the slope is 0."""
        return None if self.slope == 0 else self.slope > 0


def trend(doses: Mapping[float, Mapping[Document, float]]) -> Trend | None:
    """Test for a trend over multipliers; `doses` maps multiplier -> document -> value.

    Returns:
        None with fewer than three multipliers, or if no document has a value at every multiplier.

    Example:
        >>> found = trend({m: {document: float(document < 50 * m) for document in range(100)} for m in (0.0, 1.0, 2.0)})
        >>> round(found.slope, 3), found.monotone
        (0.5, True)
    """
    multipliers = sorted(doses)
    if len(multipliers) < _LEAST_DOSES:
        return None
    seen = set[Document]().union(*doses.values())
    common = [document for document in doses[multipliers[0]] if all(document in doses[m] for m in multipliers)]
    if not common:
        return None
    values = np.array([[doses[m][document] for m in multipliers] for document in common], dtype=np.float64)
    means = values.mean(axis=0)
    steps = np.diff(means)
    moved = bool(np.ptp(means) > 1e-12)
    return Trend(
        multipliers=tuple(multipliers),
        means=tuple(float(mean) for mean in means),
        n=len(common),
        left_out=len(seen) - len(common),
        slope=float(np.polynomial.polynomial.polyfit(multipliers, means, 1)[1]) if moved else 0.0,
        monotone=bool(np.all(steps >= -1e-12) or np.all(steps <= 1e-12)),
        p=page_p(values),
    )


def page_p(values: Floats) -> float:
    """Two-sided p of Page's test, conditional on ties.

    The test ranks the values of each prompt and sums (place of the multiplier) * rank over prompts and multipliers. It
    uses the order of the multipliers, not their spacing. If the multiplier did nothing, every order of a prompt's
    values would be equally likely. With values of 0 and 1 that distribution is computed exactly; otherwise 9,999
    permutations are drawn with a fixed seed. `values` are [prompts, multipliers], multipliers ascending.
    """
    rows = values[np.ptp(values, axis=1) > 0]  # a prompt with one value throughout is the same in every order
    if len(rows) == 0:
        return 1.0
    if np.isin(rows, (0.0, 1.0)).all() and rows.shape[1] <= _MOST_EXACT:
        return _exact_p(rows.astype(np.int64))
    return _drawn_p(rows)


def _exact_p(rows: NDArray[np.int64]) -> float:
    """For 0 and 1, Page's sum is a constant plus k / 2 times the sum of the places that hold a 1.

    In a prompt with r ones, all choices of r places are equally likely. Convolving the distributions of the prompts
    gives that of the whole; each is symmetric about its mean.
    """
    count = rows.shape[1]
    observed = int((rows * np.arange(count)).sum())
    distribution, least = np.ones(1), 0
    for ones in rows.sum(axis=1).tolist():
        offset, chances = _place_sums(count, ones)
        distribution, least = np.convolve(distribution, chances), least + offset
    sums = least + np.arange(len(distribution))
    centre = float(rows.sum()) * (count - 1) / 2
    far = np.abs(sums - centre) >= abs(observed - centre) - 1e-6
    return min(1.0, float(distribution[far].sum()))


@cache
def _place_sums(count: int, ones: int) -> tuple[int, Floats]:
    """Distribution of the sum of `ones` different places out of 0..count-1: the least sum, and chances from there."""
    sums = np.array([sum(places) for places in combinations(range(count), ones)])
    chances = np.bincount(sums - sums.min()) / len(sums)
    return int(sums.min()), chances


def _drawn_p(rows: Floats) -> float:
    ranks = stats.rankdata(rows, axis=1)
    places = np.arange(rows.shape[1]) - (rows.shape[1] - 1) / 2
    observed = abs(float((ranks @ places).sum()))
    rng, extreme = np.random.default_rng(SEED), 0
    for _ in range(RESAMPLES):
        # Shuffling the places of every prompt is shuffling its ranks.
        extreme += abs(float((rng.permuted(ranks, axis=1) @ places).sum())) >= observed - 1e-9
    return (1 + extreme) / (RESAMPLES + 1)
