"""The prompts of JBB-Behaviors, and how much of a contrast set is among them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lm_eval_cna.contrast.leakage import find_leaks
from lm_eval_cna.errors import ContrastError

JBB = ("JailbreakBench/JBB-Behaviors", "behaviors", "886acc352a31533ffbcf4ef22c744658688086fc")


@cache
def jbb_goals() -> tuple[str, ...] | ContrastError:
    """The prompts of JBB-Behaviors, harmful and benign, from the hub; or why they cannot be had.

    The answer is kept for the process: without a network the hub's client tries for half a minute before it gives up.
    """
    from lm_eval_cna.contrast.sources import Source, rows

    path, config, revision = JBB
    goals: list[str] = []
    try:
        for split in ("harmful", "benign"):
            goals += rows(Source(dataset=path, config=config, split=split, revision=revision, column="Goal"))
    except ContrastError as error:
        return error
    return tuple(goals)


def leakage_statement(prompts: Sequence[str], known: str | None) -> str:
    """What an intervention file says about leakage: what the set says itself, or a comparison with JBB.

    Args:
        prompts: all prompts of the set.
        known: what is known already; JBB is then not fetched.
    """
    if known is not None:
        return known
    goals = jbb_goals()
    if isinstance(goals, ContrastError):
        return f"not checked: {goals}"
    return find_leaks(prompts, goals).statement("JBB-Behaviors")
