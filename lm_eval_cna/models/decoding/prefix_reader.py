"""Read batches of a prefix plan with a model: shared prefixes stay in a cache, logits exist only where they are scored.

Rows are padded on the right, so causal attention needs no mask and no positions: each row continues a copy of its
prefix's keys and values. Only behind inner prefixes of different lengths are there gaps, which a mask hides.
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
from lm_eval_cna.models.decoding.prefix_plan import Block, SuffixBatch, Text, Tokens, batches
from lm_eval_cna.transformer.decoder import find_architecture

Score = tuple[float, bool]

# What a forward pass costs beside its tokens, in tokens. A GPU is slower to launch a pass than to read many tokens.
_PASS_COST = {"cpu": 16.0}
_PASS_COST_ELSEWHERE = 512.0
# The most bytes of float32 logits of a batch. Whole documents (rolling log-likelihood) come near, answers do not.
_LOGITS_BYTES = 2**30
# Positions whose logits are turned into scores at a time.
_SCORED_AT_ONCE = 1024


class ScoredSpan(NamedTuple):
    """What one request asks of a text: the log-likelihood of `targets`."""

    request: int
    """The request's position."""
    start: int
    """The position in the text whose logits predict the first target."""
    targets: list[int]


@dataclass
class ScoredTexts:
    """The distinct texts of some requests."""

    texts: list[Text] = field(default_factory=list)
    spans: list[list[ScoredSpan]] = field(default_factory=list)
    """For each text, what is asked of it."""


class PassSchedule:
    """How often each prefix and each batch is read; this one reads all once, with the model as it is."""

    count = 1

    def before_pass(self, number: int) -> None:
        """Called before each pass over an outer prefix or a batch; pass 0 is the first."""

    def prefix_read(self, cache: DynamicCache) -> None:
        """Called with the keys and values of a prefix that has been read."""


def can_share(lm: HFLM) -> bool:
    """Whether prefixes can be shared: a decoder of a known family, whose cache is the plain one, in this process."""
    model = lm.model
    adapter = getattr(model, "active_peft_config", None)
    accelerator = getattr(lm, "accelerator", None)
    if (
        lm.backend != "causal"
        # Prompt learning puts virtual tokens before the text.
        or getattr(adapter, "is_prompt_learning", False)
        # FSDP's processes must make the same forward passes, but their plans differ.
        or (accelerator is not None and accelerator.distributed_type == DistributedType.FSDP)
        or not isinstance(_head(model), nn.Module)
    ):
        return False
    try:
        config = find_architecture(model).stack.config
    except ArchitectureError:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


class PrefixReader:
    """Runs a model over the batches of a plan."""

    def __init__(self, lm: HFLM, schedule: PassSchedule) -> None:
        self._lm, self._schedule = lm, schedule
        stack: Any = find_architecture(lm.model).stack
        self._config = stack.config
        self._head = _head(lm.model)
        layers = DynamicCache(config=self._config).layers
        self._window = min((layer.sliding_window for layer in layers if layer.is_sliding), default=None)
        self.pass_cost = _PASS_COST.get(lm.device.type, _PASS_COST_ELSEWHERE)
        self.most_scored: int = max(1, _LOGITS_BYTES // (4 * self._config.vocab_size))

    def batches(self, block: Block, texts: Sequence[Text], rows: int) -> Iterator[SuffixBatch]:
        """The batches of a block, as this model can read them."""
        cut = batches(block, texts, rows=rows, pass_cost=self.pass_cost, scored=self.most_scored)
        return (part for batch in cut for part in self._without_gaps(batch, texts))

    def _without_gaps(self, batch: SuffixBatch, texts: Sequence[Text]) -> list[SuffixBatch]:
        """Split a batch whose inner prefixes differ in length, if gaps could count in a sliding window.

        A shorter prefix leaves a gap before its suffixes. The attention mask hides it, but a sliding window counts
        hidden positions too, so there must be no gap where the window cuts anything off.
        """
        ends = {group.prefix_end for group in batch.groups}
        if self._window is None or not batch.has_inner_prefixes or len(ends) == 1:
            return [batch]
        suffixes = (len(texts[text].tokens) - group.prefix_end for group in batch.groups for text in group.texts)
        if max(ends) + max(suffixes) < self._window:
            return [batch]
        return [
            SuffixBatch(batch.outer, tuple(group for group in batch.groups if group.prefix_end == end))
            for end in sorted(ends, reverse=True)
        ]

    def read(self, rows: Sequence[Tokens], past: DynamicCache | None = None) -> DynamicCache:
        """Read prefixes, in one pass and without logits; returns their keys and values."""
        cache = DynamicCache(config=self._config) if past is None else past
        # Some heads fail on an empty input, so logits are made at one position.
        with self._logits_of(torch.zeros(1, dtype=torch.long)):
            self._forward(_padded(rows), past_key_values=cache, use_cache=True)
        self._schedule.prefix_read(cache)
        return cache

    def score(
        self, outer: DynamicCache | None, batch: SuffixBatch, scored: ScoredTexts
    ) -> Iterator[tuple[ScoredSpan, Score]]:
        """Read a batch behind its outer prefix, whose keys and values are given, and score what is asked of it."""
        texts = [scored.texts[text] for text in batch.texts]
        begins = [group.prefix_end for group in batch.groups for _ in group.texts]
        suffixes = _padded([text.tokens[begin:] for text, begin in zip(texts, begins, strict=True)])
        width = suffixes.shape[1]
        arguments: dict[str, Any] = {"use_cache": False}
        if batch.has_inner_prefixes:
            arguments = self._behind_inner_prefixes(outer, batch, scored.texts, begins, width)
        elif outer is not None:
            arguments = {"past_key_values": _rows_of(outer, [0] * len(texts)), "use_cache": True}
        positions: list[int] = []  # in the flattened batch [rows * width], where logits are wanted
        first_rows: list[tuple[ScoredSpan, int]] = []
        for row, (text, begin, number) in enumerate(zip(texts, begins, batch.texts, strict=True)):
            first_rows += [(span, len(positions) + span.start - text.first_scored) for span in scored.spans[number]]
            positions += range(row * width + text.first_scored - begin, row * width + len(text.tokens) - begin)
        with self._logits_of(torch.tensor(positions)):
            logits = self._forward(suffixes, **arguments)
        yield from _scores(logits[0], first_rows, self._lm.softmax_dtype or torch.float32)

    def _behind_inner_prefixes(
        self, outer: DynamicCache | None, batch: SuffixBatch, texts: Sequence[Text], begins: list[int], width: int
    ) -> dict[str, Any]:
        """Read the inner prefixes of a batch; returns what the forward pass over its suffixes needs."""
        prefixes = [texts[group.texts[0]].tokens[batch.outer : group.prefix_end] for group in batch.groups]
        past = self.read(prefixes, None if outer is None else _rows_of(outer, [0] * len(prefixes)))
        parents = [number for number, group in enumerate(batch.groups) for _ in group.texts]
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
    def _logits_of(self, positions: torch.Tensor) -> Iterator[None]:
        """Let the model compute logits [1, n, vocabulary] at n positions of the flattened batch [rows * tokens] only.

        This hooks the head's input, so that the model still does to its output what it does (a soft cap, a factor).
        """

        def chosen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            return (hidden.flatten(0, 1).index_select(0, positions.to(hidden.device))[None], *args[1:])

        handle = self._head.register_forward_pre_hook(chosen)
        try:
            yield
        finally:
            handle.remove()


def _head(model: nn.Module) -> Any:
    """The module that turns hidden states into logits, or None."""
    find: Any = getattr(model, "get_output_embeddings", None)
    return None if find is None else find()


def _padded(rows: Sequence[Tokens]) -> torch.Tensor:
    """Rows of tokens in one tensor, padded on the right, where causal attention needs no mask."""
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(padded)


def _rows_of(cache: DynamicCache, parents: Sequence[int]) -> DynamicCache:
    """A cache whose row i is row `parents[i]` of `cache`, which stays as it is.

    A single row is expanded without a copy: an update replaces a layer's tensors and never edits them.
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


def _scores(
    logits: torch.Tensor, spans: Sequence[tuple[ScoredSpan, int]], dtype: torch.dtype
) -> Iterator[tuple[ScoredSpan, Score]]:
    """Score spans, each given with the row of the logits [n, vocabulary] that predicts its first target."""
    rows = torch.tensor([first + step for span, first in spans for step in range(len(span.targets))])
    targets = torch.tensor([target for span, _ in spans for target in span.targets])
    rows, targets = rows.to(logits.device), targets.to(logits.device)
    chosen = logits[rows, targets].to(dtype)
    chunks = torch.split(logits, _SCORED_AT_ONCE)
    total = torch.cat([chunk.to(dtype).logsumexp(-1) for chunk in chunks])
    best = torch.cat([chunk.argmax(-1) for chunk in chunks])
    log_probs = (chosen - total[rows]).tolist()
    greedy = (best[rows] == targets).tolist()
    begin = 0
    for span, _ in spans:
        end = begin + len(span.targets)
        yield span, (sum(log_probs[begin:end]), all(greedy[begin:end]))
        begin = end
