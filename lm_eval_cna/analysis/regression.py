"""A run against a stored baseline: what changed by more than is tolerated and more than noise would change it.

Both runs ask the same prompts, so each prompt is its own control. If nothing happened between them, a prompt's score
is as likely the one in the one run and the other in the other as the reverse, so the change of each prompt is as likely
with its sign turned; the sign-flip test over prompts is then exact, however often answers change from run to run and
however hard the prompts are (where the untouched model's answers
stay, it is McNemar's test). A comparison fails when the change is
beyond the tolerance and its p is below the share of `Tolerances.false_alarms` that falls to it, so that a whole check
fails by chance no more often than that. Of that, 65 % is for losses of those effects that can be lost, being larger
than the tolerance; 5 % for effects that change in any other way, 20 % for falls of quality and capability and rises of
degenerate texts, and the rest for the controls. `benchmarks.check_simulation` counts both kinds of error.

That a circuit beats its controls is checked where the baseline had it clearly (`Tolerances.separation`), by the rank
test over control seeds of `analysis.null` in the new run alone: the seeds may be others.
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
#: Shares of the false alarms.
_LOSSES, _OTHERS, _DAMAGE = 0.65, 0.05, 0.2
_ROUNDING = 1e-9


class Finding(AnalysisRecord):
    """One comparison of a check."""

    what: What
    """An effect (a change from the untouched model), a level of damage, or the effect's place among controls."""
    cell: str
    task: str
    metric: str
    """What about."""
    kind: Kind
    """Whether the metric is a rate or a mean."""
    before: float
    now: float | None
    """The effect or level in the baseline and in the run; None where the run has no value."""
    interval: Interval | None = None
    """Of an effect now, 95 %."""
    low: float
    high: float
    """What is tolerated; of controls, their range in the run."""
    n: int
    """Prompts compared."""
    p: float | None
    """Of the change, or of the rank among controls."""
    threshold: float
    """Below it a change is no noise; of controls, above it they are not beaten."""
    passed: bool
    """The verdict."""
    text: str
    """What is wrong, or that nothing is."""


class Check(AnalysisRecord):
    """A run held against a baseline."""

    run: str
    model: str
    """The run."""
    against: str
    """Name of the run that the baseline is."""
    findings: tuple[Finding, ...]
    """Every comparison."""
    notes: tuple[str, ...]
    """What is no failure and yet may be why one is there."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.passed for finding in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What failed."""
        return tuple(finding for finding in self.findings if not finding.passed)


def check_run(directory: RunDirectory, baseline: Baseline) -> Check:
    """Check a finished run.

    Raises:
        RunError: the directory is no finished run, or a file of it is damaged.
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
    """Every comparison of a run of the baseline's protocol with the baseline: effects, damage, controls."""
    effects = [row for row in baseline.answers if is_effect(row)]
    damage = [row for row in baseline.answers if _damage(row) is not None]
    alarms, tolerance = baseline.tolerances.false_alarms, baseline.tolerances.effect
    sizes = [_size(baseline, row) for row in effects]
    losses = _LOSSES * alarms / max(1, sum(abs(size) > tolerance for size in sizes))
    # p is two-sided, and a share is of one direction: half as many arrangements.
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
    """Two-sided p of the sum of changes whose signs are as likely turned.

    Exact for whole numbers up to 2, which is what rates give: the sum of the ones and that of the twos are binomial.
    Sampled, with a fixed seed, for others.
    """
    if not np.isin(changes, (-2.0, -1.0, 0.0, 1.0, 2.0)).all():
        return sign_flip_p(changes)
    ones, twos = (int(np.sum(np.abs(changes) == size)) for size in (1, 2))
    return _turned_p(ones, twos, abs(round(float(changes.sum()))))


@cache
def _turned_p(ones: int, twos: int, distance: int) -> float:
    """Chance that so many ones and twos of random sign sum to at least that distance from 0."""
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
    room = {
        "quality": (-tolerance.quality, 1.0),
        "degenerate": (-1.0, tolerance.degenerate),
        "capability": (-tolerance.capability, 1.0),
    }[what]
    at = (row.cell, row.task, row.metric)
    return _finding(row, what, baseline.scores(*at), outcomes.of(*at), room, (threshold, threshold))


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
    room: tuple[float, float],
    thresholds: tuple[float, float],
    *,
    interval: Interval | None = None,
) -> Finding:
    """Hold the values of the same prompts against each other.

    `room` is the change that is tolerated, `thresholds` are those of p for a fall and for a rise.
    """
    common = [document for document in before if document in now]
    level = fmean(before.values()) if before else 0.0
    changes = np.array([now[document] - before[document] for document in common], dtype=np.float64)
    moved = float(changes.mean()) if common else 0.0
    p, threshold = change_p(changes) if common else None, thresholds[moved > 0]
    outside = moved < room[0] - _ROUNDING or moved > room[1] + _ROUNDING
    passed = p is not None and not (outside and p <= threshold)
    if p is None:
        text = "no prompt has a value in both runs"
    elif not outside:
        text = "within the tolerance"
    elif passed:
        text = "beyond the tolerance, but no more than noise"
    else:
        text = f"changed by {_change(moved, row.kind)}, tolerated is {_change(room[moved > 0], row.kind)}"
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
        low=max(level + room[0], -1.0 if what == "effect" else 0.0),
        high=min(level + room[1], 1.0),
        n=len(common),
        p=p,
        threshold=threshold,
        passed=passed,
        text=text,
    )


def _controls(baseline: Baseline, outcomes: Outcomes) -> list[Finding]:
    """Where the baseline's circuit clearly beat its controls, that this run's does."""
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
