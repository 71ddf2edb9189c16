"""Log-likelihoods that read each shared prefix once and compute logits only where something is scored.

lm-eval's HFLM reads every distinct text whole and takes a log-softmax over [batch, sequence, vocabulary]. Here
`prefix_plan` decides what is shared and `prefix_reader` reads it. Answers equal HFLM's within rounding, with the same
truncation, order, greedy flags and calls of lm-eval's response cache.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers.cache_utils import DynamicCache

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.models.decoding.prefix_plan import Text, plan
from lm_eval_cna.models.decoding.prefix_reader import (
    PassSchedule,
    PrefixReader,
    Score,
    ScoredSpan,
    ScoredTexts,
    can_share,
)

__all__ = ["can_share", "score_passes", "score_tokens"]

logger = logging.getLogger(__name__)

Request = tuple[Any, list[int], list[int]]


def score_tokens(
    lm: HFLM, requests: Sequence[Request], *, disable_tqdm: bool = False, override_bs: int | None = None
) -> list[Score]:
    """HFLM's `_loglikelihood_tokens` with shared prefixes, for a model that `can_share`, steered or not.

    Each request is a key for lm-eval's response cache or None, the tokens of its context and those of its continuation.
    Returns the continuation's log-likelihood, and whether greedy decoding would have said it.

    Raises:
        ConfigError: a continuation is empty or longer than the model's context, or a context is empty.
    """
    scores: list[Score | None] = [None] * len(requests)
    with tqdm(total=len(requests), disable=disable_tqdm or lm.rank != 0, desc="Running loglikelihood requests") as bar:
        for _, span, score in score_passes(lm, requests, PassSchedule(), override_bs=override_bs):
            scores[span.request] = score
            key = requests[span.request][0]
            if key is not None:  # parts of a rolling request have none
                lm.cache_hook.add_partial("loglikelihood", key, score)
            bar.update(1)
    return [score for score in scores if score is not None]


def score_passes(
    lm: HFLM, requests: Sequence[Request], schedule: PassSchedule, *, override_bs: int | None = None
) -> Iterator[tuple[int, ScoredSpan, Score]]:
    """Score requests in one or more passes over each batch; yields the pass's number, what was asked, and its score.

    Raises:
        ConfigError: see `score_tokens`.
    """
    scored = _scored_texts(requests, lm.max_length)
    texts, rows = scored.texts, _rows(lm, requests, override_bs)
    reader = PrefixReader(lm, schedule)
    for block in plan(texts, rows=rows, pass_cost=reader.pass_cost):
        prefixes: list[DynamicCache] = []  # the outer prefix, as each pass reads it
        if block.outer:
            tokens = texts[block.groups[0].texts[0]].tokens[: block.outer]
            for number in range(schedule.count):
                schedule.before_pass(number)
                prefixes.append(reader.read([tokens]))
        for batch in reader.batches(block, texts, rows):
            for number in range(schedule.count):
                schedule.before_pass(number)
                for span, score in reader.score(prefixes[number] if prefixes else None, batch, scored):
                    yield number, span, score


def _scored_texts(requests: Sequence[Request], max_length: int) -> ScoredTexts:
    """The distinct texts that the model must read, each with what is asked of it."""
    found: dict[bytes, int] = {}
    scored = ScoredTexts()
    too_long = 0
    for number, (_, context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= max_length:
            raise ConfigError(
                "tokens of a context and its continuation",
                got=(len(context), len(continuation)),
                allowed=f"at least 1 of each, and at most the model's {max_length} of the continuation",
            )
        too_long += len(context) + len(continuation) > max_length + 1
        # As in HFLM: cut on the left; the last token is predicted and not read.
        tokens = np.array((context + continuation)[-(max_length + 1) : -1], dtype=np.int64)
        start = len(tokens) - len(continuation)
        position = found.setdefault(tokens.tobytes(), len(scored.texts))
        if position == len(scored.texts):
            scored.texts.append(Text(tokens, start))
            scored.spans.append([])
        elif start < scored.texts[position].first_scored:
            scored.texts[position] = Text(tokens, start)
        scored.spans[position].append(ScoredSpan(number, start, continuation))
    if too_long:
        logger.warning("%d requests are longer than the model's %d tokens and cut on the left", too_long, max_length)
    return scored


def _rows(lm: HFLM, requests: Sequence[Request], override_bs: int | None) -> int:
    """Rows of a batch, chosen as HFLM does: "auto" tries what fits with the longest request."""
    if lm.batch_size != "auto":
        return int(lm.batch_size)
    if override_bs is not None:
        return override_bs
    longest = max(requests, key=lambda request: len(request[1]) + len(request[2]), default=None)
    return 1 if longest is None else int(lm._detect_batch_size([longest], 0))
