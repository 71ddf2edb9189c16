"""A contrast set in memory: positive and negative prompts for one behaviour."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_cna.errors import ContrastError


@dataclass(frozen=True)
class ContrastSet:
    """Prompts of one behaviour.

    Raises:
        ContrastError: a class is empty, a prompt is blank, given twice, or in both classes.
    """

    name: str
    """What the set is called in intervention files."""
    positive: tuple[str, ...]
    """Prompts that show the behaviour."""
    negative: tuple[str, ...]
    """Prompts that do not."""
    source: str = "given in code"
    """Where it was read from."""
    leakage: str | None = None
    """What is known of prompts shared with evaluation sets, or None where nobody has looked."""

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
        """Hash of the prompts of each class; name, source and order do not enter."""
        return prompts_sha256(self.positive, self.negative)


def _spaced(prompt: str) -> str:
    return " ".join(prompt.split())


def prompts_sha256(*classes: Sequence[str]) -> str:
    """Hash of classes of prompts, whatever their order within a class."""
    canonical = json.dumps([sorted(prompts) for prompts in classes], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
