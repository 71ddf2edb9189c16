"""Splitting a contrast set into folds: stratified, seeded, and whatever the order of the file."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.splits import NEGATIVE, POSITIVE, Split, split_prompts
from lm_eval_cna.errors import ConfigError


def prompts(positive: int, negative: int, *, turned: bool = False) -> ContrastSet:
    classes = [f"yes {n}" for n in range(positive)], [f"no {n}" for n in range(negative)]
    return ContrastSet("made-up", *(tuple(reversed(c) if turned else c) for c in classes))


def by_prompt(contrast: ContrastSet, split: Split) -> dict[str, tuple[int, int, int]]:
    return dict(zip(contrast.prompts, split.prompts, strict=True))


@given(st.integers(2, 30), st.integers(2, 30), st.integers(2, 12), st.integers(0, 5))
def test_every_fold_has_its_share_of_both_labels(positive: int, negative: int, folds: int, seed: int) -> None:
    contrast = prompts(positive, negative)
    if folds > min(positive, negative):
        with pytest.raises(ConfigError, match="folds; got"):
            split_prompts(contrast, folds, seed=seed)
        return
    split = split_prompts(contrast, folds, seed=seed)
    assert [group.label for group in split.prompts] == [POSITIVE] * positive + [NEGATIVE] * negative
    for label, number in ((POSITIVE, positive), (NEGATIVE, negative)):
        sizes = [len(split.members(fold, label)) for fold in range(folds)]
        assert sum(sizes) == number and max(sizes) - min(sizes) <= 1
        halves = Counter(group.shuffled for group in split.prompts if group.label == label)
        assert abs(halves[0] - halves[1]) <= 1 + folds % 2 + number % folds
    assert [split.groups[number] for number in split.numbers] == list(split.prompts)


def test_a_split_depends_on_the_prompts_and_the_seed_and_not_on_their_order() -> None:
    one, turned = prompts(20, 20), prompts(20, 20, turned=True)
    assert by_prompt(one, split_prompts(one, 5)) == by_prompt(turned, split_prompts(turned, 5))
    assert split_prompts(one, 5) == split_prompts(one, 5, seed=0) != split_prompts(one, 5, seed=1)


def test_the_shuffled_labels_say_nothing_of_the_true_ones() -> None:
    split = split_prompts(prompts(20, 20), 5)
    for fold in range(5):
        left = Counter((g.label, g.shuffled) for g in split.prompts if g.fold != fold)
        assert set(left.values()) == {8}


@pytest.mark.parametrize(
    ("positive", "folds", "said"),
    [(8, 1, r"folds; got 1; allowed: 2 to 8.*of made-up"), (3, 4, "allowed: 2 to 3"), (1, 2, "larger contrast set")],
)
def test_numbers_of_folds_that_cannot_be(positive: int, folds: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        split_prompts(prompts(positive, 20), folds)
