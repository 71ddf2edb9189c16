"""A row times two things in turn in one process, and its figure is the ratio of the two.

Whatever slows the machine then slows both, so the ratio is steadier than either time; it is reported as the median over
rounds with its range. No row asserts a number of seconds: a target is shown beside the ratio, as met or missed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from benchmarks.workbench import Workbench

Work = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """One of the two things.

    Attributes:
        label: what it is.
        work: does it once.
        scale: what its seconds are multiplied with, where `work` does a sample of the whole.
        sample: says which sample that is.
    """

    label: str
    work: Work
    scale: float = 1.0
    sample: str | None = None

    def seconds(self) -> float:
        """Do it once, and say how long the whole takes."""
        began = time.perf_counter()
        self.work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a kernel that is queued is not done
        return self.scale * (time.perf_counter() - began)


@dataclass(frozen=True)
class Outcome:
    """What a row found.

    Attributes:
        ours, theirs: seconds of each round; empty for a row that times nothing.
        values: the figure of each round: theirs / ours, or what a row without times measured.
        labels: of the two sides, ours first.
        note: what a reader must know: samples, sizes, what was the same on both sides.
        details: more figures, by name.
        skipped: why the row was not run.
    """

    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    labels: tuple[str, str] = ("", "")
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def value(self) -> float:
        """The figure: the median over rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: for ``--only``.
        what: what is measured.
        against: what it is measured against.
        run: measures it.
        rounds: how often, unless the user says otherwise.
        at_least, at_most: the target, if there is one.
        unit: of the figure.
    """

    name: str
    what: str
    against: str
    run: Callable[[Workbench], Outcome]
    rounds: int
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"

    @property
    def target(self) -> str:
        """The target in words."""
        bounds = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return f"{' and '.join(bounds)} {self.unit}" if bounds else "-"

    def verdict(self, value: float) -> str:
        """Whether the target is met."""
        if self.at_least is None and self.at_most is None:
            return "-"
        low = self.at_least is None or value >= self.at_least
        high = self.at_most is None or value <= self.at_most
        return "met" if low and high else "missed"


ROWS: dict[str, Row] = {}


def row(
    name: str,
    what: str,
    against: str = "-",
    *,
    rounds: int = 5,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "x",
) -> Callable[[Callable[[Workbench], Outcome]], Callable[[Workbench], Outcome]]:
    """Add the decorated function to the table; see `Row`."""

    def add(run: Callable[[Workbench], Outcome]) -> Callable[[Workbench], Outcome]:
        assert name not in ROWS
        ROWS[name] = Row(name, what, against, run, rounds, at_least, at_most, unit)
        return run

    return add


def compare(ours: Side, theirs: Side, rounds: int, *, warm_up: bool = True, note: str = "", **details: Any) -> Outcome:
    """Time the two in turn, the other one first in every second round.

    Args:
        ours: one side.
        theirs: the other; the figure is how many times longer it takes.
        rounds: how many times each.
        warm_up: do both once before, untimed.
        note: see `Outcome`.
        **details: see `Outcome`.
    """
    if warm_up:
        ours.work()
        theirs.work()
    pairs = []
    for number in range(rounds):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        taken = {side.label: side.seconds() for side in order}
        pairs.append((taken[ours.label], taken[theirs.label]))
    samples = [f"{side.label}: {side.sample}, scaled by {side.scale:g}" for side in (ours, theirs) if side.sample]
    return Outcome(
        ours=tuple(pair[0] for pair in pairs),
        theirs=tuple(pair[1] for pair in pairs),
        values=tuple(pair[1] / pair[0] for pair in pairs),
        labels=(ours.label, theirs.label),
        note="; ".join(part for part in (note, *samples) if part),
        details=details,
    )
