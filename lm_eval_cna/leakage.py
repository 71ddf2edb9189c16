"""Whether a contrast set holds prompts that a model is evaluated on.

Floor 1. A circuit found on the evaluation's own prompts says little about others. Two prompts count as the same if they
are equal after normalisation (exact), or share most of their words (near).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from lm_eval_cna.errors import ContrastError

# Share of common words, 2 |A & B| / (|A| + |B|), from which two prompts are near-duplicates. Measured between AdvBench
# and JBB: rewordings of one request lie above, different requests of one form below; see contrasts/README.md.
NEAR = 0.8

JBB = ("JailbreakBench/JBB-Behaviors", "behaviors", "886acc352a31533ffbcf4ef22c744658688086fc")
_WORD = re.compile(r"\w+")


def normalise(prompt: str) -> str:
    """A prompt without case, punctuation and accidental white space (Unicode NFKC)."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", prompt).casefold()))


def similarity(first: Iterable[str], second: Iterable[str]) -> float:
    """Dice coefficient of two sets of words: 2 |A & B| / (|A| + |B|), 0 to 1."""
    a, b = set(first), set(second)
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


@dataclass(frozen=True)
class Match:
    """A prompt and the evaluation prompt it resembles; similarity 1 with `exact` is the same text."""

    prompt: str
    evaluation: str
    similarity: float
    exact: bool


@dataclass(frozen=True)
class LeakageReport:
    """What was found.

    Attributes:
        checked: the number of prompts looked at.
        against: the number of evaluation prompts.
        matches: one a leaking prompt, its closest evaluation prompt.
        threshold: similarity from which a prompt leaks.
    """

    checked: int
    against: int
    matches: tuple[Match, ...]
    threshold: float = NEAR

    def statement(self, of: str) -> str:
        """One line for the intervention file."""
        exact = sum(match.exact for match in self.matches)
        return (
            f"{exact} of {self.checked} prompts equal and {len(self.matches) - exact} resemble "
            f"(word overlap {self.threshold:g} or more) one of {self.against} prompts of {of}"
        )


def find_leaks(prompts: Sequence[str], evaluation: Sequence[str], *, threshold: float = NEAR) -> LeakageReport:
    """Find the prompts that equal or closely resemble an evaluation prompt.

    Args:
        prompts: the prompts to check, of both classes.
        evaluation: prompts that models are evaluated on.
        threshold: word overlap from which two prompts are near-duplicates.
    """
    targets = [(text, key, frozenset(key.split())) for text, key in ((e, normalise(e)) for e in evaluation)]
    matches = []
    for prompt in prompts:
        key = normalise(prompt)
        words = frozenset(key.split())
        best = max(
            (Match(prompt, text, similarity(words, theirs), key == their_key) for text, their_key, theirs in targets),
            key=lambda match: (match.exact, match.similarity),
            default=None,
        )
        if best is not None and (best.exact or best.similarity >= threshold):
            matches.append(best)
    return LeakageReport(len(prompts), len(evaluation), tuple(matches), threshold)


@cache
def jbb_goals() -> tuple[str, ...] | ContrastError:
    """The prompts of JBB-Behaviors, harmful and benign, from the hub; or why they cannot be had.

    The answer is kept for the process: without a network the hub's client tries for half a minute before it gives up.
    """
    from lm_eval_cna.contrast_sources import Source, rows

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
