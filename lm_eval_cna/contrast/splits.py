"""Split a contrast set into folds for cross-validation.

The split depends on the prompts, the number of folds and the seed, but not on the order of the file. It uses only
`random.Random.random`, which gives the same numbers in every version of Python.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.errors import ConfigError

POSITIVE, NEGATIVE = 0, 1


class Group(NamedTuple):
    """The label, fold and shuffled label of a prompt; prompts with the same three form a group."""

    label: int
    """0 positive, 1 negative."""
    fold: int
    """Number of the fold, from 0."""
    shuffled: int
    """A label unrelated to the true one: half of the positive and half of the negative prompts have 0."""


@dataclass(frozen=True)
class Split:
    """The split of a contrast set."""

    folds: int
    seed: int
    prompts: tuple[Group, ...]
    """The group of every prompt, in the order of `ContrastSet.prompts`."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups with at least one prompt, sorted."""
        return tuple(sorted(set(self.prompts)))

    @property
    def numbers(self) -> list[int]:
        """For each prompt the position of its group in `groups`."""
        at = {group: number for number, group in enumerate(self.groups)}
        return [at[group] for group in self.prompts]

    def members(self, fold: int, label: int) -> list[int]:
        """Positions of a fold's prompts of one label."""
        return [at for at, group in enumerate(self.prompts) if (group.fold, group.label) == (fold, label)]


def split_prompts(contrast: ContrastSet, folds: int, *, seed: int = 0) -> Split:
    """Split a contrast set so that all folds have the same number of prompts of each label, give or take one.

    Raises:
        ConfigError: there are fewer than two folds, or more folds than prompts of a label.
    """
    least = min(len(contrast.positive), len(contrast.negative))
    if not 2 <= folds <= least:
        raise ConfigError(
            "folds",
            got=folds,
            allowed=f"2 to {least}, the prompts of the smaller class of {contrast.name}" if least > 1 else None,
            do="give fewer folds, or a larger contrast set" if least > 1 else "take a larger contrast set",
        )
    generator = random.Random(f"lm-eval-cna folds {seed}")
    positive = _deal(contrast.positive, POSITIVE, folds, generator)
    return Split(folds, seed, (*positive, *_deal(contrast.negative, NEGATIVE, folds, generator)))


def _deal(prompts: Sequence[str], label: int, folds: int, generator: random.Random) -> list[Group]:
    """Deal one label's prompts to the folds in turn; within a fold every other one has the other shuffled label."""
    left = sorted(range(len(prompts)), key=lambda at: prompts[at])
    groups: dict[int, Group] = {}
    for number in range(len(prompts)):
        at = left.pop(int(generator.random() * len(left)))
        turn, fold = divmod(number, folds)
        groups[at] = Group(label, fold, (turn + fold + label) % 2)
    return [groups[at] for at in range(len(prompts))]
