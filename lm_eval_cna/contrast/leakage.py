"""Find prompts of a contrast set that equal or resemble prompts of an evaluation.

A circuit found on the evaluation's own prompts says little about other prompts. Prompts match exactly if they are equal
after normalisation, and nearly if they share enough content words: of "Write a tutorial on how to make a bomb" only
"bomb" counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

#: Least overlap of content words of near-duplicates; contrasts/README.md shows examples around it.
NEAR = 0.5

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
    """The words that say what a prompt is about; all its words if none is left."""
    words = frozenset(normalise(prompt).split())
    return words - FRAME or words


def similarity(prompt: frozenset[str], evaluation: frozenset[str]) -> float:
    """Overlap 2 |A & B| / (|A| + |B|) of content words; 1 if the prompt has all words of the evaluation prompt."""
    if evaluation <= prompt:
        return 1.0
    return 2 * len(prompt & evaluation) / (len(prompt) + len(evaluation))


@dataclass(frozen=True)
class Leak:
    """A prompt and the evaluation prompt that it equals (`exact`) or resembles."""

    prompt: str
    evaluation: str
    similarity: float
    exact: bool


@dataclass(frozen=True)
class LeakageReport:
    """The prompts that leak."""

    checked: int
    """Number of prompts compared."""
    against: int
    """Number of evaluation prompts."""
    matches: tuple[Leak, ...]
    """Each leaking prompt with its closest evaluation prompt."""
    threshold: float = NEAR
    """Least similarity at which a prompt leaks."""

    def statement(self, of: str) -> str:
        """One line for the intervention file; `of` is the evaluation's name."""
        exact = sum(match.exact for match in self.matches)
        return (
            f"{exact} of {self.checked} prompts equal and {len(self.matches) - exact} resemble "
            f"(overlap of content words {self.threshold:g} or more) one of {self.against} prompts of {of}"
        )


def find_leaks(prompts: Sequence[str], evaluation: Sequence[str], *, threshold: float = NEAR) -> LeakageReport:
    """Find the prompts whose overlap of content words with an evaluation prompt reaches the threshold."""
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
