"""A contrast set: positive and negative prompts for one behaviour."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_cna.errors import ContrastError


@dataclass(frozen=True)
class ContrastSet:
    """Prompts that show a behaviour and prompts that do not.

    Raises:
        ContrastError: a class is empty, a prompt is blank, given twice, or in both classes.
    """

    name: str
    """Name of the set, as intervention files give it."""
    positive: tuple[str, ...]
    """Prompts that show the behaviour."""
    negative: tuple[str, ...]
    """Prompts that do not."""
    source: str = "given in code"
    """The file that it was read from."""
    leakage: str | None = None
    """A statement about prompts shared with evaluation sets; None if not checked."""

    def __post_init__(self) -> None:
        for label, prompts in (("positive", self.positive), ("negative", self.negative)):
            if not prompts:
                raise ContrastError(f"contrast set {self.name} has no {label} prompt", do="give both classes prompts")
            if any(not prompt.strip() for prompt in prompts):
                raise ContrastError(f"contrast set {self.name} has a blank {label} prompt")
            twice = [key for key, n in Counter(map(_spaced, prompts)).items() if n > 1]
            if twice:
                raise ContrastError(f"contrast set {self.name} has a {label} prompt more than once", got=twice[0])
        both = set(map(_spaced, self.positive)) & set(map(_spaced, self.negative))
        if both:
            raise ContrastError(f"contrast set {self.name} has a prompt in both classes", got=min(both))

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, positive first."""
        return self.positive + self.negative

    @property
    def sha256(self) -> str:
        """Hash of the prompts of each class, whatever their order; the name and the source do not count."""
        return prompts_sha256(self.positive, self.negative)


def _spaced(prompt: str) -> str:
    return " ".join(prompt.split())


def prompts_sha256(*classes: Sequence[str]) -> str:
    """Hash of lists of prompts, whatever the order within a list."""
    canonical = json.dumps([sorted(prompts) for prompts in classes], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
