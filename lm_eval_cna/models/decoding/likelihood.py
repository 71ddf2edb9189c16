"""Log-likelihoods that read each shared prefix once and compute logits only where something is scored.

lm-eval's HFLM reads every distinct text whole and takes a log-softmax over [batch, sequence, vocabulary].
Here `prefixes` plans trunks (the few-shot examples of a subject) and stems (the question before several answers), and
`prefix_reader` reads them. The answers are HFLM's but for rounding: the same truncation, order, greedy flags and calls
of lm-eval's response cache.
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
from lm_eval_cna.models.decoding.prefix_reader import Passes, Reader, Score, Scored, ScoredSpan, can_share

__all__ = ["can_share", "score_passes", "score_tokens"]

logger = logging.getLogger(__name__)

Request = tuple[Any, list[int], list[int]]


def score_tokens(
    lm: HFLM, requests: Sequence[Request], *, disable_tqdm: bool = False, override_bs: int | None = None
) -> list[Score]:
    """HFLM's `_loglikelihood_tokens` with shared prefixes, for a model that `can_share`.

    Args:
        lm: the model, steered or not.
        requests: what lm-eval's cache is to be told, or None; tokens of the context; tokens of the continuation.
        disable_tqdm: draw no bar.
        override_bs: batch size where the model's is "auto".

    Returns:
        Log-likelihood of each continuation and whether it is what the model would have said, in the order of requests.

    Raises:
        ConfigError: a continuation is empty or longer than the model's context, or a context is empty.
    """
    scores: list[Score | None] = [None] * len(requests)
    with tqdm(total=len(requests), disable=disable_tqdm or lm.rank != 0, desc="Running loglikelihood requests") as bar:
        for _, asked, score in score_passes(lm, requests, Passes(), override_bs=override_bs):
            scores[asked.request] = score
            told = requests[asked.request][0]
            if told is not None:  # parts of a rolling request are not told
                lm.cache_hook.add_partial("loglikelihood", told, score)
            bar.update(1)
    return [score for score in scores if score is not None]


def score_passes(
    lm: HFLM, requests: Sequence[Request], passes: Passes, *, override_bs: int | None = None
) -> Iterator[tuple[int, ScoredSpan, Score]]:
    """Score requests in one or more passes over each batch.

    Args:
        lm: a model that `can_share`.
        requests: see `score_tokens`.
        passes: what is done to the model before each.
        override_bs: see `score_tokens`.

    Yields:
        The pass, the request and its score.

    Raises:
        ConfigError: see `score_tokens`.
    """
    scored = _texts(requests, lm.max_length)
    texts, rows = scored.texts, _rows(lm, requests, override_bs)
    reader = Reader(lm, passes)
    for block in plan(texts, rows=rows, pass_cost=reader.pass_cost):
        trunks: list[DynamicCache] = []
        if block.depth:
            tokens = texts[block.units[0].texts[0]].tokens[: block.depth]
            for position in range(passes.count):
                passes.begin(position)
                trunks.append(reader.read([tokens]))
        for batch in reader.batches(block, texts, rows):
            for position in range(passes.count):
                passes.begin(position)
                for asked, score in reader.score(trunks[position] if trunks else None, batch, scored):
                    yield position, asked, score


def _texts(requests: Sequence[Request], max_length: int) -> Scored:
    """The distinct texts that the model must read, each with what is asked of it."""
    found: dict[bytes, int] = {}
    scored = Scored()
    too_long = 0
    for number, (_, context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= max_length:
            raise ConfigError(
                "tokens of a context and its continuation",
                got=(len(context), len(continuation)),
                allowed=f"at least 1 of each, and at most the model's {max_length} of the continuation",
            )
        too_long += len(context) + len(continuation) > max_length + 1
        # As HFLM does: cut on the left, and the last token is predicted but not read.
        tokens = np.array((context + continuation)[-(max_length + 1) : -1], dtype=np.int64)
        start = len(tokens) - len(continuation)
        position = found.setdefault(tokens.tobytes(), len(scored.texts))
        if position == len(scored.texts):
            scored.texts.append(Text(tokens, start))
            scored.asked.append([])
        elif start < scored.texts[position].first:
            scored.texts[position] = Text(tokens, start)
        scored.asked[position].append(ScoredSpan(number, start, continuation))
    if too_long:
        logger.warning("%d requests are longer than the model's %d tokens and cut on the left", too_long, max_length)
    return scored


def _rows(lm: HFLM, requests: Sequence[Request], override_bs: int | None) -> int:
    """Rows of a batch, as HFLM takes them: "auto" tries what fits with the longest request."""
    if lm.batch_size != "auto":
        return int(lm.batch_size)
    if override_bs is not None:
        return override_bs
    longest = max(requests, key=lambda request: len(request[1]) + len(request[2]), default=None)
    return 1 if longest is None else int(lm._detect_batch_size([longest], 0))
