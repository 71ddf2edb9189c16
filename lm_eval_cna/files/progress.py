"""The protocol by which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that long work calls from its own thread, so a slow one slows the work."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Report how far a stage is.

        Args:
            stage: the name of the stage, the same in all its reports.
            done: how many units are done.
            total: how many units there are; 0 if unknown.
            detail: more text for the person who waits.
        """


def silent(stage: str, done: int, total: int, detail: str = "") -> None:
    """Report nothing."""


def named(name: str, progress: Progress) -> Progress:
    """Report the progress of one of several jobs: puts its name before the stage."""
    return lambda stage, done, total, detail="": progress(f"{name}: {stage}", done, total, detail)
