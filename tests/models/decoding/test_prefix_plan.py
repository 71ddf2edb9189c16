"""The plan: every text is read once, prefixes are shared where that costs less, batches keep to their limits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from lm_eval_cna.models.decoding.prefix_plan import PrefixBatch, Text, batches, plan

GPU, CPU = 512.0, 16.0


def text(tokens: Sequence[int], first: int | None = None) -> Text:
    return Text(np.array(tokens, dtype=np.int64), len(tokens) - 1 if first is None else first)


def numbers(count: int, seed: int) -> list[int]:
    return [random.Random(seed).randrange(1000) for _ in range(count)] if count else []


def cut(texts: Sequence[Text], *, rows: int, pass_cost: float = CPU, scored: int = 10**6) -> list[PrefixBatch]:
    found: list[PrefixBatch] = []
    for block in plan(texts, rows=rows, pass_cost=pass_cost):
        found += batches(block, texts, rows=rows, pass_cost=pass_cost, scored=scored)
    return found


def read(texts: Sequence[Text], found: Sequence[PrefixBatch]) -> int:
    """Tokens that are read, padding aside; a trunk is counted once for each of its contents."""
    trunks = {texts[batch.texts[0]].tokens[: batch.trunk].tobytes() for batch in found}
    total = sum(len(trunk) // 8 for trunk in trunks)
    for batch in found:
        for unit in batch.units:
            total += unit.depth - batch.trunk + sum(len(texts[text].tokens) - unit.depth for text in unit.texts)
    return total


def subject(questions: int, examples: int, question: int, seed: int) -> list[Text]:
    shared = numbers(examples, seed)
    rng = random.Random(seed)
    return [text(shared + numbers(rng.randrange(question // 2, question * 2), seed + n + 1)) for n in range(questions)]


def test_few_shot_examples_are_a_trunk() -> None:
    texts = subject(100, 400, 50, 0) + subject(100, 500, 50, 1000)
    blocks = plan(texts, rows=16, pass_cost=CPU)
    assert [block.depth >= 400 for block in blocks] == [True, True]
    assert read(texts, cut(texts, rows=16)) <= 900 + sum(len(one.tokens) for one in texts) - 100 * 900


def test_a_question_before_its_answers_is_a_stem() -> None:
    texts = []
    for n in range(20):
        question = numbers(80, n)
        texts += [text([*question, *numbers(9, 100 * n + answer)], 79) for answer in range(4)]
    found = cut(texts, rows=16)
    assert all(batch.trunk == 0 and batch.has_stems for batch in found)
    assert all(unit.depth == 79 and len(unit.texts) == 4 for batch in found for unit in batch.units)
    assert [len(batch.texts) for batch in found] == [16] * 5


def test_answers_under_a_trunk_have_stems() -> None:
    shared, texts = numbers(300, 0), []
    for n in range(20):
        question = [*shared, *numbers(80, n + 1)]
        texts += [text([*question, *numbers(9, 100 * n + answer)], len(question) - 1) for answer in range(4)]
    found = cut(texts, rows=16)
    assert all(batch.trunk == 300 and batch.has_stems for batch in found)
    assert read(texts, found) == 300 + 20 * 79 + 80 * 10


def test_texts_without_a_common_beginning_share_nothing() -> None:
    texts = [text([n, *numbers(40, n)]) for n in range(50)]
    (block,) = plan(texts, rows=8, pass_cost=CPU)
    assert block.depth == 0 and all(len(unit.texts) == 1 and unit.depth == 0 for unit in block.units)


def test_a_short_common_beginning_is_not_worth_a_pass() -> None:
    texts = [text([1, 2, *numbers(40, n)]) for n in range(50)]
    assert plan(texts, rows=8, pass_cost=GPU)[0].depth == 0


def test_what_is_scored_is_never_shared() -> None:
    texts = [text([*numbers(100, 0), n, *numbers(30, n)], 60) for n in range(40)]
    found = cut(texts, rows=8)
    assert all(0 < unit.depth <= 60 for batch in found for unit in batch.units)
    whole = [text([*numbers(100, 0), n], 0) for n in range(40)]
    assert all(unit.depth == 0 for batch in cut(whole, rows=8) for unit in batch.units)


def test_one_text_that_is_scored_whole_does_not_stop_the_others() -> None:
    texts = subject(60, 400, 40, 0)
    texts.append(text(texts[0].tokens[:1].tolist(), 0))
    assert plan(texts, rows=16, pass_cost=CPU)[0].depth >= 400


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
        assert all(len(unit.texts) > 1 or not batch.has_stems for unit in batch.units)
        assert {unit.depth > batch.trunk for unit in batch.units} == {batch.has_stems}
        assert len({texts[one].tokens[: batch.trunk].tobytes() for one in batch.texts}) == 1
        for unit in batch.units:
            assert len({texts[one].tokens[: unit.depth].tobytes() for one in unit.texts}) == 1
            assert all(unit.depth <= texts[one].first for one in unit.texts)
    assert read(texts, planned) <= sum(len(one.tokens) for one in texts)


def test_nothing_to_read() -> None:
    assert plan([], rows=4, pass_cost=CPU) == []
