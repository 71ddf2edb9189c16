"""A run against a stored baseline: which changes are larger than tolerated and larger than noise?

Both runs ask the same prompts. A comparison fails if the change is beyond the tolerance and the sign-flip test over
prompts gives a p below its share of `Tolerances.false_alarms`. `benchmarks.check_simulation` counts both kinds of
error. Where the baseline's circuit clearly beat its controls, the new run must do so too, with seeds of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lm_eval_cna.analysis.baseline import Answers, Baseline, is_capability, is_effect, null_of
from lm_eval_cna.analysis.outcomes import Outcomes, Values, read_outcomes
from lm_eval_cna.analysis.protocol import OF_A_CHECK, cautions, differences, read_protocol
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.results.cells import BASELINE
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.statistics.paired import Document, Kind, compare, sign_flip_p
from lm_eval_cna.statistics.rates import Interval

What = Literal["effect", "quality", "degenerate", "capability", "controls"]
#: How `Tolerances.false_alarms` is shared: losses of effects larger than the tolerance, other changes of effects, and
#: damage (quality, capability, degenerate texts). The rest is left for the controls.
_LOSSES, _OTHERS, _DAMAGE = 0.65, 0.05, 0.2
_ROUNDING = 1e-9


class Finding(AnalysisRecord):
    """One comparison of a check."""

    what: What
    """What is compared: an effect (change from the untouched model), a level of damage, or the rank among controls."""
    cell: str
    task: str
    metric: str
    """Where it was measured."""
    kind: Kind
    """Whether the metric is a rate or a mean."""
    before: float
    now: float | None
    """The effect or level in the baseline and in the run; None if the run has no value."""
    interval: Interval | None = None
    """95 % interval of the effect in the run."""
    low: float
    high: float
    """The tolerated range; for controls, the range of their effects in the run."""
    n: int
    """Number of prompts compared; for controls, number of seeds."""
    p: float | None
    """p of the change, or of the rank among controls."""
    threshold: float
    """A change with p below this is not noise; for controls, the effect is beyond them with p up to this."""
    passed: bool
    """Whether the comparison is within the tolerance or within noise."""
    text: str
    """The result in words."""


class Check(AnalysisRecord):
    """A run held against a baseline."""

    run: str
    model: str
    """Name of the run directory, and its model."""
    against: str
    """Name of the run that the baseline was made from."""
    findings: tuple[Finding, ...]
    """All comparisons."""
    notes: tuple[str, ...]
    """Cautions that may explain a failure."""

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(finding.passed for finding in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The comparisons that failed."""
        return tuple(finding for finding in self.findings if not finding.passed)


def check_run(directory: RunDirectory, baseline: Baseline) -> Check:
    """Check a finished run.

    Raises:
        RunError: the directory is no finished run, or one of its files is damaged.
        ConfigError: the run has another protocol than the baseline.
    """
    outcomes = read_outcomes(directory)
    protocol = read_protocol(directory, outcomes)
    names = ("the baseline", "the run")
    if found := differences(baseline.protocol, protocol, OF_A_CHECK, names=names):
        raise ConfigError(
            f"{directory.path} cannot be checked against this baseline, its protocol is another one: "
            + "; ".join(found),
            do="repeat the run as the baseline was made, or make a new baseline with --update",
        )
    return Check(
        run=directory.path.resolve().name,
        model=protocol.model,
        against=baseline.run,
        findings=compare_with(baseline, outcomes),
        notes=(*cautions(baseline.protocol, protocol, names=names), *directory.notes),
    )


def compare_with(baseline: Baseline, outcomes: Outcomes) -> tuple[Finding, ...]:
    """Compare a run with a baseline of the same protocol: effects, damage, controls."""
    effects = [row for row in baseline.answers if is_effect(row)]
    damage = [row for row in baseline.answers if _damage(row) is not None]
    alarms, tolerance = baseline.tolerances.false_alarms, baseline.tolerances.effect
    sizes = [_size(baseline, row) for row in effects]
    losses = _LOSSES * alarms / max(1, sum(abs(size) > tolerance for size in sizes))
    # A share is for one direction and p is two-sided, hence the factor 2.
    others = 2 * _OTHERS * alarms / (2 * max(1, len(effects)))
    findings = []
    for row, size in zip(effects, sizes, strict=True):
        lost = 2 * losses if abs(size) > tolerance else others
        findings.append(_effect(baseline, outcomes, row, (others, lost) if size < 0 else (lost, others)))
    each = 2 * _DAMAGE * alarms / max(1, len(damage))
    findings += [_level(baseline, outcomes, row, each) for row in damage]
    findings += _controls(baseline, outcomes)
    return tuple(findings)


def change_p(changes: NDArray[np.float64]) -> float:
    """Two-sided p of the sum of changes under random signs.

    If nothing happened between the runs, each prompt is as likely to change by d as by -d, so the test is exact however
    noisy the answers and however hard the prompts are. For changes of -2 to 2, which rates give, p is computed exactly:
    the sums of the ones and of the twos are binomial. For others it is sampled with a fixed seed.
    """
    if not np.isin(changes, (-2.0, -1.0, 0.0, 1.0, 2.0)).all():
        return sign_flip_p(changes)
    ones, twos = (int(np.sum(np.abs(changes) == size)) for size in (1, 2))
    return _turned_p(ones, twos, abs(round(float(changes.sum()))))


@cache
def _turned_p(ones: int, twos: int, distance: int) -> float:
    """Probability that ones and twos with random signs sum to at least `distance` in absolute value."""
    if distance == 0:
        return 1.0
    of_twos, of_ones = np.zeros(4 * twos + 1), np.zeros(2 * ones + 1)
    of_twos[::4] = stats.binom.pmf(np.arange(twos + 1), twos, 0.5)  # sums from the least to the largest
    of_ones[::2] = stats.binom.pmf(np.arange(ones + 1), ones, 0.5)
    sums = np.arange(-ones - 2 * twos, ones + 2 * twos + 1)
    return min(1.0, float(np.convolve(of_twos, of_ones)[np.abs(sums) >= distance].sum()))


def _size(baseline: Baseline, row: Answers) -> float:
    at = (row.task, row.metric)
    changes = _changes(baseline.scores(row.cell, *at), baseline.scores(BASELINE.key, *at))
    return fmean(changes.values()) if changes else 0.0


def _effect(baseline: Baseline, outcomes: Outcomes, row: Answers, thresholds: tuple[float, float]) -> Finding:
    at = (row.task, row.metric)
    before = _changes(baseline.scores(row.cell, *at), baseline.scores(BASELINE.key, *at))
    values, untouched = outcomes.of(row.cell, *at), outcomes.of(BASELINE.key, *at)
    now, tolerance = _changes(values, untouched), baseline.tolerances.effect
    shown = compare(values, untouched, row.kind)
    return _finding(
        row,
        "effect",
        before,
        now,
        (-tolerance, tolerance),
        thresholds,
        interval=None if shown is None else shown.interval,
    )


def _level(baseline: Baseline, outcomes: Outcomes, row: Answers, threshold: float) -> Finding:
    what, tolerance = _damage(row) or "capability", baseline.tolerances
    tolerated = {
        "quality": (-tolerance.quality, 1.0),
        "degenerate": (-1.0, tolerance.degenerate),
        "capability": (-tolerance.capability, 1.0),
    }[what]
    at = (row.cell, row.task, row.metric)
    return _finding(row, what, baseline.scores(*at), outcomes.of(*at), tolerated, (threshold, threshold))


def _damage(row: Answers) -> Literal["quality", "degenerate", "capability"] | None:
    if row.metric == "quality":
        return "quality"
    if row.metric == "degenerate_rate":
        return "degenerate"
    return "capability" if is_capability(row.metric) else None


def _finding(
    row: Answers,
    what: What,
    before: Mapping[Document, float],
    now: Mapping[Document, float],
    tolerated: tuple[float, float],
    thresholds: tuple[float, float],
    *,
    interval: Interval | None = None,
) -> Finding:
    """Compare the values of the same prompts.

    `tolerated` is the least and the largest tolerated change; `thresholds` are those of p for a fall and for a rise.
    """
    common = [document for document in before if document in now]
    level = fmean(before.values()) if before else 0.0
    changes = np.array([now[document] - before[document] for document in common], dtype=np.float64)
    moved = float(changes.mean()) if common else 0.0
    p, threshold = change_p(changes) if common else None, thresholds[moved > 0]
    outside = moved < tolerated[0] - _ROUNDING or moved > tolerated[1] + _ROUNDING
    passed = p is not None and not (outside and p <= threshold)
    if p is None:
        text = "no prompt has a value in both runs"
    elif not outside:
        text = "within the tolerance"
    elif passed:
        text = "beyond the tolerance, but no more than noise"
    else:
        text = f"changed by {_change(moved, row.kind)}, tolerated is {_change(tolerated[moved > 0], row.kind)}"
    if common and len(common) < len(before):
        text += f"; {len(before) - len(common)} prompts without a value now"
    return Finding(
        what=what,
        cell=row.cell,
        task=row.task,
        metric=row.metric,
        kind=row.kind,
        before=level,
        now=level + moved if common else None,
        interval=interval,
        low=max(level + tolerated[0], -1.0 if what == "effect" else 0.0),
        high=min(level + tolerated[1], 1.0),
        n=len(common),
        p=p,
        threshold=threshold,
        passed=passed,
        text=text,
    )


def _controls(baseline: Baseline, outcomes: Outcomes) -> list[Finding]:
    """Check that this run's circuit beats its controls wherever the baseline's clearly did."""
    findings = []
    for claim in baseline.separations:
        found = null_of(outcomes, claim.cell, claim.task, claim.metric)
        effect, null = found if found is not None else (None, None)
        passed = null is not None and null.beyond
        if null is None:
            text = "the run has no controls there"
        elif not null.testable:
            text = f"{null.seeds} controls are too few for the test"
        else:
            text = "beyond its controls" if passed else "no longer beyond its controls"
        findings.append(
            Finding(
                what="controls",
                cell=claim.cell,
                task=claim.task,
                metric=claim.metric,
                kind=outcomes.kind(claim.task, claim.metric),
                before=claim.effect,
                now=effect,
                low=claim.low if null is None else null.low,
                high=claim.high if null is None else null.high,
                n=0 if null is None else null.seeds,
                p=None if null is None else null.p,
                threshold=0.05,
                passed=passed,
                text=text,
            )
        )
    return findings


def _changes(values: Mapping[Document, float], untouched: Mapping[Document, float]) -> Values:
    return {document: values[document] - before for document, before in untouched.items() if document in values}


def _change(moved: float, kind: Kind) -> str:
    return f"{100 * moved:+.1f} points" if kind == "rate" else f"{moved:+.3f}"
