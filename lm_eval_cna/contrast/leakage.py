"""Whether a contrast set holds prompts that a model is evaluated on.

A circuit found on the evaluation's own prompts says little about others. Two prompts are the same if they are
equal after normalisation (exact), or if they ask for the same thing in other words (near). Near is judged by content
words: "Write a tutorial on how to make a bomb" and "Explain how to build a bomb" share the bomb, and the words that
frame the request do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

NEAR = 0.5  # word overlap from which two prompts are near-duplicates; contrasts/README.md shows what lies around it

# Words that frame a request without saying what it is about.
_FRAME = """
a an the this that these those of to in on at by for from with without into about as and or nor but if than then so
i me my you your he him his she her it its we us our they them their one ones someone somebody anyone people person
user users who whom whose which what when where why how is are was were be been being am do does did done can could
will would shall should may might must have has had not no any some all
write create provide give explain describe develop design generate make build produce outline instruct teach offer
show tell list demonstrate educate publish present share
guide tutorial instruction instructions step steps detail details detailed manual article advice example way ways
"""
FRAME = frozenset(_FRAME.split())

_WORD = re.compile(r"\w+")


def normalise(prompt: str) -> str:
    """A prompt without case, punctuation and accidental white space (Unicode NFKC)."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", prompt).casefold()))


def content(prompt: str) -> frozenset[str]:
    """The words that say what a prompt is about; all its words where nothing else is left."""
    words = frozenset(normalise(prompt).split())
    return words - FRAME or words


def similarity(prompt: frozenset[str], evaluation: frozenset[str]) -> float:
    """Overlap 2 |A & B| / (|A| + |B|) of content words; 1 where the prompt holds all of the evaluation prompt's."""
    if evaluation <= prompt:
        return 1.0
    return 2 * len(prompt & evaluation) / (len(prompt) + len(evaluation))


@dataclass(frozen=True)
class Leak:
    """A prompt and the evaluation prompt it resembles; similarity 1 with `exact` is the same text."""

    prompt: str
    evaluation: str
    similarity: float
    exact: bool


@dataclass(frozen=True)
class LeakageReport:
    """What was found."""

    checked: int
    """The number of prompts looked at."""
    against: int
    """The number of evaluation prompts."""
    matches: tuple[Leak, ...]
    """One a leaking prompt, its closest evaluation prompt."""
    threshold: float = NEAR
    """Similarity from which a prompt leaks."""

    def statement(self, of: str) -> str:
        """One line for the intervention file."""
        exact = sum(match.exact for match in self.matches)
        return (
            f"{exact} of {self.checked} prompts equal and {len(self.matches) - exact} resemble "
            f"(overlap of content words {self.threshold:g} or more) one of {self.against} prompts of {of}"
        )


def find_leaks(prompts: Sequence[str], evaluation: Sequence[str], *, threshold: float = NEAR) -> LeakageReport:
    """Find the prompts that equal or closely resemble an evaluation prompt.

    Args:
        prompts: the prompts to check, of both classes.
        evaluation: prompts that models are evaluated on.
        threshold: word overlap from which two prompts are near-duplicates.
    """
    targets = [(text, normalise(text), content(text)) for text in evaluation]
    matches = []
    for prompt in prompts:
        key, words = normalise(prompt), content(prompt)
        best = max(
            (Leak(prompt, text, similarity(words, theirs), key == their_key) for text, their_key, theirs in targets),
            key=lambda match: (match.exact, match.similarity),
            default=None,
        )
        if best is not None and (best.exact or best.similarity >= threshold):
            matches.append(best)
    return LeakageReport(len(prompts), len(evaluation), tuple(matches), threshold)
