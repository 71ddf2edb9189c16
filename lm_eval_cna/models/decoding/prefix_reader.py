"""Reads batches of a prefix plan with a model: what is shared stays in a cache, logits are made where they are scored.

Rows are filled up on the right, so causal attention needs no mask and no positions: each row continues a copy
of its prefix's keys and values. Only behind stems of different lengths are there holes, which a mask hides.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import DistributedType
from lm_eval.models.huggingface import HFLM
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lm_eval_cna.errors import ArchitectureError
from lm_eval_cna.models.decoding.prefix_plan import Block, PrefixBatch, Text, Tokens, batches
from lm_eval_cna.transformer.decoder import find_architecture

Score = tuple[float, bool]

# What a forward pass costs beside its tokens, in tokens: a GPU reads a thousand in the time that its launches take.
_PASS_COST = {"cpu": 16.0}
_PASS_COST_ELSEWHERE = 512.0
# Bytes of float32 logits that one batch may have. Few answers come near; whole documents (rolling) do.
_LOGITS_BYTES = 2**30
# Rows of logits that are reduced at a time.
_REDUCED_ROWS = 1024


class ScoredSpan(NamedTuple):
    """A request on a text: log-likelihood of `targets`, whose logits are those of the positions from `start`."""

    request: int
    start: int
    targets: list[int]


@dataclass
class Scored:
    """The requests by text."""

    texts: list[Text] = field(default_factory=list)
    asked: list[list[ScoredSpan]] = field(default_factory=list)


class Passes:
    """How often each trunk and each batch is read: once, with the model as it is. See `likelihood_settings`."""

    count = 1

    def begin(self, position: int) -> None:
        """Called before pass `position` over a trunk or a batch; pass 0 is the first over something new."""

    def keep(self, cache: DynamicCache) -> None:
        """Called with the keys and values of whatever has been read to be continued."""


def can_share(lm: HFLM) -> bool:
    """Whether prefixes can be shared: a decoder of a known family, whose cache is the plain one, in this process."""
    model = lm.model
    adapter = getattr(model, "active_peft_config", None)
    accelerator = getattr(lm, "accelerator", None)
    if (
        lm.backend != "causal"
        # Virtual tokens before the text.
        or getattr(adapter, "is_prompt_learning", False)
        # Its processes must make the same forward passes, and plans differ.
        or (accelerator is not None and accelerator.distributed_type == DistributedType.FSDP)
        or not isinstance(_head(model), nn.Module)
    ):
        return False
    try:
        config = find_architecture(model).stack.config
    except ArchitectureError:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


class Reader:
    """Runs a model over batches of a plan."""

    def __init__(self, lm: HFLM, passes: Passes) -> None:
        self._lm, self._passes = lm, passes
        stack: Any = find_architecture(lm.model).stack
        self._config = stack.config
        self._head = _head(lm.model)
        layers = DynamicCache(config=self._config).layers
        self._window = min((layer.sliding_window for layer in layers if layer.is_sliding), default=None)
        self.pass_cost = _PASS_COST.get(lm.device.type, _PASS_COST_ELSEWHERE)
        self.most_scored: int = max(1, _LOGITS_BYTES // (4 * self._config.vocab_size))

    def batches(self, block: Block, texts: Sequence[Text], rows: int) -> Iterator[PrefixBatch]:
        """The batches of a block, as this model can read them."""
        cut = batches(block, texts, rows=rows, pass_cost=self.pass_cost, scored=self.most_scored)
        return (part for batch in cut for part in self._without_holes(batch, texts))

    def _without_holes(self, batch: PrefixBatch, texts: Sequence[Text]) -> list[PrefixBatch]:
        """Split a batch whose stems differ in length, if a sliding window could then be counted wrongly.

        A shorter stem leaves a hole between itself and what follows, which the attention mask hides. A sliding window
        counts hidden positions too, so while it cuts anything off there must be none.
        """
        depths = {unit.depth for unit in batch.units}
        if self._window is None or not batch.has_stems or len(depths) == 1:
            return [batch]
        tails = (len(texts[text].tokens) - unit.depth for unit in batch.units for text in unit.texts)
        if max(depths) + max(tails) < self._window:
            return [batch]
        return [
            PrefixBatch(batch.trunk, tuple(unit for unit in batch.units if unit.depth == depth))
            for depth in sorted(depths, reverse=True)
        ]

    def read(self, rows: Sequence[Tokens], past: DynamicCache | None = None) -> DynamicCache:
        """Read rows and keep their keys and values; without logits."""
        cache = DynamicCache(config=self._config) if past is None else past
        # Even a head that wants one position at least is content with the first.
        with self._logits_of(torch.zeros(1, dtype=torch.long)):
            self._forward(_padded(rows), past_key_values=cache, use_cache=True)
        self._passes.keep(cache)
        return cache

    def score(
        self, trunk: DynamicCache | None, batch: PrefixBatch, scored: Scored
    ) -> Iterator[tuple[ScoredSpan, Score]]:
        """Read what a batch adds to its trunk, and score what is asked of it."""
        texts = [scored.texts[text] for text in batch.texts]
        begins = [unit.depth for unit in batch.units for _ in unit.texts]
        tails = _padded([text.tokens[begin:] for text, begin in zip(texts, begins, strict=True)])
        width = tails.shape[1]
        arguments: dict[str, Any] = {"use_cache": False}
        if batch.has_stems:
            arguments = self._behind_stems(trunk, batch, scored.texts, begins, width)
        elif trunk is not None:
            arguments = {"past_key_values": _rows_of(trunk, [0] * len(texts)), "use_cache": True}
        where: list[int] = []
        places: list[tuple[ScoredSpan, int]] = []
        for row, (text, begin, asked_here) in enumerate(
            zip(texts, begins, (scored.asked[text] for text in batch.texts), strict=True)
        ):
            places += [(asked, len(where) + asked.start - text.first) for asked in asked_here]
            where += range(row * width + text.first - begin, row * width + len(text.tokens) - begin)
        with self._logits_of(torch.tensor(where)):
            logits = self._forward(tails, **arguments)
        yield from _reduced(logits[0], places, self._lm.softmax_dtype or torch.float32)

    def _behind_stems(
        self, trunk: DynamicCache | None, batch: PrefixBatch, texts: Sequence[Text], begins: list[int], width: int
    ) -> dict[str, Any]:
        """Read the stems of a batch; returns what the forward pass over its tails needs."""
        stems = [texts[unit.texts[0]].tokens[batch.trunk : unit.depth] for unit in batch.units]
        past = self.read(stems, None if trunk is None else _rows_of(trunk, [0] * len(stems)))
        parents = [number for number, unit in enumerate(batch.units) for _ in unit.texts]
        arguments: dict[str, Any] = {"past_key_values": _rows_of(past, parents), "use_cache": True}
        longest = max(begins)
        if min(begins) < longest:
            starts = torch.tensor(begins)[:, None]
            columns = torch.arange(longest + width)[None]
            mask = ((columns < starts) | (columns >= longest)).long()
            arguments["attention_mask"] = mask.to(self._lm.device)
            arguments["position_ids"] = (starts + torch.arange(width)).to(self._lm.device)
        return arguments

    def _forward(self, tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """As HFLM's `_model_call`, with a cache."""
        lm = self._lm
        dtype = lm.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(device_type=lm.device.type, dtype=dtype, enabled=dtype is not None):
            logits = lm.model(tokens.to(lm.device), **arguments).logits
        assert isinstance(logits, torch.Tensor)
        return logits

    @contextmanager
    def _logits_of(self, where: torch.Tensor) -> Iterator[None]:
        """Let the model compute logits [1, n, vocabulary] of the n positions in `where`, counted through all rows.

        A hook on the head, since what models do to its output (a soft cap, a factor) is theirs and stays so.
        """

        def chosen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            return (hidden.flatten(0, 1).index_select(0, where.to(hidden.device))[None], *args[1:])

        handle = self._head.register_forward_pre_hook(chosen)
        try:
            yield
        finally:
            handle.remove()


def _head(model: nn.Module) -> Any:
    """The module that makes logits of hidden states, or None."""
    find: Any = getattr(model, "get_output_embeddings", None)
    return None if find is None else find()


def _padded(rows: Sequence[Tokens]) -> torch.Tensor:
    """Rows of tokens in one tensor, filled up on the right, where causal attention needs no mask."""
    filled = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, tokens in zip(filled, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(filled)


def _rows_of(cache: DynamicCache, parents: Sequence[int]) -> DynamicCache:
    """A cache whose row i is row `parents[i]` of another, which stays as it is.

    Layers put a longer tensor into the place of theirs when they are updated, so one row is copied only then.
    """
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in taken.layers:
        assert layer.keys is not None and layer.values is not None
        if layer.keys.shape[0] == 1:
            layer.keys = layer.keys.expand(len(parents), -1, -1, -1)
            layer.values = layer.values.expand(len(parents), -1, -1, -1)
        else:
            chosen = torch.tensor(parents, device=layer.keys.device)
            layer.keys, layer.values = layer.keys.index_select(0, chosen), layer.values.index_select(0, chosen)
    return taken


def _reduced(
    logits: torch.Tensor, places: Sequence[tuple[ScoredSpan, int]], dtype: torch.dtype
) -> Iterator[tuple[ScoredSpan, Score]]:
    """Scores from the logits [n, vocabulary] of the scored positions.

    Args:
        logits: of a batch.
        places: what is asked, and the row of `logits` that its first target is predicted by.
        dtype: what log-likelihoods are computed in.
    """
    rows = torch.tensor([place + step for asked, place in places for step in range(len(asked.targets))])
    targets = torch.tensor([target for asked, _ in places for target in asked.targets])
    rows, targets = rows.to(logits.device), targets.to(logits.device)
    chosen = logits[rows, targets].to(dtype)
    chunks = torch.split(logits, _REDUCED_ROWS)
    total = torch.cat([chunk.to(dtype).logsumexp(-1) for chunk in chunks])
    best = torch.cat([chunk.argmax(-1) for chunk in chunks])
    gains = (chosen - total[rows]).tolist()
    greedy = (best[rows] == targets).tolist()
    begin = 0
    for asked, _ in places:
        end = begin + len(asked.targets)
        yield asked, (sum(gains[begin:end]), all(greedy[begin:end]))
        begin = end
