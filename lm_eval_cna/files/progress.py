"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called while long work goes on, from the thread that does it; a slow one slows the work."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Tell how far a stage is.

        Args:
            stage: what is being done; the same text until that is finished.
            done: how much of it is.
            total: how much there is; 0 where nobody knows.
            detail: what else a person who waits wants to read.
        """


def silent(stage: str, done: int, total: int, detail: str = "") -> None:
    """Tell nobody."""


def named(name: str, progress: Progress) -> Progress:
    """The progress of one of several pieces of work, whose stages begin with its name."""
    return lambda stage, done, total, detail="": progress(f"{name}: {stage}", done, total, detail)
