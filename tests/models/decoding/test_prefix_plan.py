"""The plan: every text is read once, prefixes are shared where that costs less, batches keep to their limits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from lm_eval_cna.models.decoding.prefix_plan import SuffixBatch, Text, batches, plan

GPU, CPU = 512.0, 16.0


def text(tokens: Sequence[int], first: int | None = None) -> Text:
    return Text(np.array(tokens, dtype=np.int64), len(tokens) - 1 if first is None else first)


def numbers(count: int, seed: int) -> list[int]:
    return [random.Random(seed).randrange(1000) for _ in range(count)] if count else []


def cut(texts: Sequence[Text], *, rows: int, pass_cost: float = CPU, scored: int = 10**6) -> list[SuffixBatch]:
    found: list[SuffixBatch] = []
    for block in plan(texts, rows=rows, pass_cost=pass_cost):
        found += batches(block, texts, rows=rows, pass_cost=pass_cost, scored=scored)
    return found


def read(texts: Sequence[Text], found: Sequence[SuffixBatch]) -> int:
    """Tokens that are read, padding aside; a prefix is counted once for each of its contents."""
    prefixes = {texts[batch.texts[0]].tokens[: batch.outer].tobytes() for batch in found}
    total = sum(len(prefix) // 8 for prefix in prefixes)
    for batch in found:
        for group in batch.groups:
            total += (
                group.prefix_end - batch.outer + sum(len(texts[text].tokens) - group.prefix_end for text in group.texts)
            )
    return total


def subject(questions: int, examples: int, question: int, seed: int) -> list[Text]:
    shared = numbers(examples, seed)
    rng = random.Random(seed)
    return [text(shared + numbers(rng.randrange(question // 2, question * 2), seed + n + 1)) for n in range(questions)]


def test_few_shot_examples_are_an_outer_prefix() -> None:
    texts = subject(100, 400, 50, 0) + subject(100, 500, 50, 1000)
    blocks = plan(texts, rows=16, pass_cost=CPU)
    assert [block.outer >= 400 for block in blocks] == [True, True]
    assert read(texts, cut(texts, rows=16)) <= 900 + sum(len(one.tokens) for one in texts) - 100 * 900


def test_a_question_before_its_answers_is_an_inner_prefix() -> None:
    texts = []
    for n in range(20):
        question = numbers(80, n)
        texts += [text([*question, *numbers(9, 100 * n + answer)], 79) for answer in range(4)]
    found = cut(texts, rows=16)
    assert all(batch.outer == 0 and batch.has_inner_prefixes for batch in found)
    assert all(group.prefix_end == 79 and len(group.texts) == 4 for batch in found for group in batch.groups)
    assert [len(batch.texts) for batch in found] == [16] * 5


def test_answers_behind_an_outer_prefix_share_inner_ones() -> None:
    shared, texts = numbers(300, 0), []
    for n in range(20):
        question = [*shared, *numbers(80, n + 1)]
        texts += [text([*question, *numbers(9, 100 * n + answer)], len(question) - 1) for answer in range(4)]
    found = cut(texts, rows=16)
    assert all(batch.outer == 300 and batch.has_inner_prefixes for batch in found)
    assert read(texts, found) == 300 + 20 * 79 + 80 * 10


@pytest.mark.parametrize(("beginning", "pass_cost"), [([], CPU), ([1, 2], GPU)])
def test_a_common_beginning_that_is_not_worth_a_pass(beginning: list[int], pass_cost: float) -> None:
    texts = [text([*beginning, n, *numbers(40, n)]) for n in range(50)]
    (block,) = plan(texts, rows=8, pass_cost=pass_cost)
    assert block.outer == 0 and all(len(group.texts) == 1 and group.prefix_end == 0 for group in block.groups)


def test_what_is_scored_is_never_shared() -> None:
    texts = [text([*numbers(100, 0), n, *numbers(30, n)], 60) for n in range(40)]
    found = cut(texts, rows=8)
    assert all(0 < group.prefix_end <= 60 for batch in found for group in batch.groups)
    whole = [text([*numbers(100, 0), n], 0) for n in range(40)]
    assert all(group.prefix_end == 0 for batch in cut(whole, rows=8) for group in batch.groups)


def test_one_text_that_is_scored_whole_does_not_stop_the_others() -> None:
    texts = subject(60, 400, 40, 0)
    texts.append(text(texts[0].tokens[:1].tolist(), 0))
    assert plan(texts, rows=16, pass_cost=CPU)[0].outer >= 400


def test_a_batch_has_no_more_scored_positions_than_allowed() -> None:
    texts = [text([n, *numbers(20, n)], 0) for n in range(30)]
    assert max(len(batch.texts) for batch in cut(texts, rows=16, scored=64)) == 3
    assert [len(batch.texts) for batch in cut(texts, rows=16, scored=5)] == [1] * 30, "one text alone is always read"


def test_long_texts_are_not_padded_to() -> None:
    texts = [text([n, *numbers(300 if n < 4 else 20, n)]) for n in range(32)]
    assert [len(batch.texts) for batch in cut(texts, rows=32)] == [4, 28]
    assert [len(batch.texts) for batch in cut(texts, rows=32, pass_cost=10**5)] == [32]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pass_cost", [0.0, CPU, GPU])
def test_every_text_is_read_once_whatever_they_are(seed: int, pass_cost: float) -> None:
    rng = random.Random(seed)
    found: dict[bytes, Text] = {}
    while len(found) < 60:
        # Few distinct tokens: many texts are beginnings of others.
        tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        one = text(tokens, rng.randrange(len(tokens)))
        found.setdefault(one.tokens.tobytes(), one)
    texts, rows = list(found.values()), rng.randrange(1, 9)
    planned = cut(texts, rows=rows, pass_cost=pass_cost, scored=40)
    assert sorted(text for batch in planned for text in batch.texts) == list(range(60))
    for batch in planned:
        assert len(batch.texts) <= rows
        assert all(len(group.texts) > 1 or not batch.has_inner_prefixes for group in batch.groups)
        assert {group.prefix_end > batch.outer for group in batch.groups} == {batch.has_inner_prefixes}
        assert len({texts[one].tokens[: batch.outer].tobytes() for one in batch.texts}) == 1
        for group in batch.groups:
            assert len({texts[one].tokens[: group.prefix_end].tobytes() for one in group.texts}) == 1
            assert all(group.prefix_end <= texts[one].first_scored for one in group.texts)
    assert read(texts, planned) <= sum(len(one.tokens) for one in texts)
