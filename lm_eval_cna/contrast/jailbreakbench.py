"""Compare a contrast set with the prompts of JBB-Behaviors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lm_eval_cna.contrast import sources
from lm_eval_cna.contrast.leakage import find_leaks
from lm_eval_cna.errors import ContrastError

JBB = ("JailbreakBench/JBB-Behaviors", "behaviors", "886acc352a31533ffbcf4ef22c744658688086fc")


@cache
def jbb_goals() -> tuple[str, ...] | ContrastError:
    """Fetch the prompts of JBB-Behaviors, harmful and benign, from the hub; returns the error if that fails.

    The error is cached too: without a network the hub's client tries for half a minute before it gives up.
    """
    path, config, revision = JBB
    goals: list[str] = []
    try:
        for split in ("harmful", "benign"):
            source = sources.Source(dataset=path, config=config, split=split, revision=revision, column="Goal")
            goals += sources.rows(source)
    except ContrastError as error:
        return error
    return tuple(goals)


def leakage_statement(prompts: Sequence[str], known: str | None) -> str:
    """The statement on leakage for an intervention file: the known one, or a comparison with JBB-Behaviors."""
    if known is not None:
        return known
    goals = jbb_goals()
    if isinstance(goals, ContrastError):
        return f"not checked: {goals}"
    return find_leaks(prompts, goals).statement("JBB-Behaviors")
