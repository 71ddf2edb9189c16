"""A greedy decoding loop in which finished rows leave the batch and its KV cache.

transformers' `generate` runs the loop as `custom_generate`, so generation settings, position ids and logits processors
are its own. A row is decoded as if it were alone and without padding: in the ids that processors see, a row's padding
is its own first token, and processors that read a row's tail or length (`_BY_LENGTH`) see no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation import logits_process as processors

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.models.decoding.row_cache import closed_up, keep_rows, roomy_cache

#: Two scores closer than this, relative to the larger of 1 and |top score|, are a near-tie: rounding that depends on
#: the batch (padding, the order of sums) may decide between them. It is 8 steps of float32, and 8 steps of any other
#: dtype. Measured on the organism in float32: 60 columns of padding move the gap of the two largest scores by at most
#: 2.3e-7.
NEAR_TIE = 1e-6

#: Processors that give the same result if a row's padding is its own first token. (A repetition penalty counts a token
#: once however often it occurs; some versions of transformers' `generate` penalise the padding token instead.)
_ANY_PADDING: tuple[type, ...] = (
    processors.RepetitionPenaltyLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.ForcedEOSTokenLogitsProcessor,
    processors.ExponentialDecayLengthPenalty,
    processors.SuppressTokensLogitsProcessor,
    processors.SuppressTokensAtBeginLogitsProcessor,
    processors.InfNanRemoveLogitsProcessor,
    processors.LogitNormalization,
)
#: Processors that must not see padding: n-grams and bad words would match in it, and lengths would count it.
_BY_LENGTH: tuple[type, ...] = (
    processors.MinLengthLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor,
    processors.SequenceBiasLogitsProcessor,
    processors.ForcedBOSTokenLogitsProcessor,
)

#: Steps between two looks at the tokens on an accelerator, since reading them waits for the device. What a row
#: generates past its end is thrown away.
LOOK_EVERY = 8


@dataclass
class GeneratedRow:
    """One response while it is generated."""

    limit: int
    """The most tokens to generate."""
    ends: frozenset[int]
    """Token ids that end the response; the ending token is kept."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Called with the tokens so far after each token; True ends the response."""
    tokens: list[int] = field(default_factory=list)
    """Generated so far."""
    near_ties: int = 0
    """Steps at which the choice was a near-tie."""
    done: bool = False
    """Whether the response is complete."""

    def add(self, token: int, near: int) -> None:
        """Take the next token, unless the response is complete."""
        if self.done:
            return
        self.tokens.append(token)
        self.near_ties += near
        self.done = (
            token in self.ends
            or len(self.tokens) >= self.limit
            or (self.stopped is not None and self.stopped(self.tokens))
        )


def greedy_rows(
    rows: Sequence[GeneratedRow], moved: Callable[[list[int]], None]
) -> Callable[..., Sequence[GeneratedRow]]:
    """A decoding method for `generate(custom_generate=...)` that fills `rows`, one for each row of the batch.

    `moved` is called with the numbers of the rows in the batch, before the first pass and whenever rows have left.

    Raises:
        ConfigError: while decoding, if the generation settings ask for a logits processor that is not supported.
    """

    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = (),
        stopping_criteria: Any = None,
        generation_config: Any = None,
        # Only parameters of transformers' own decoding methods: `generate` treats others differently.
        **model_kwargs: Any,
    ) -> Sequence[GeneratedRow]:
        # `stopping_criteria` are ignored: each row knows when it is done.
        mask, positions = model_kwargs.pop("attention_mask", None), model_kwargs.pop("position_ids", None)
        model_kwargs.pop("past_key_values", None)
        if positions is None and mask is not None and "position_ids" in inspect.signature(model.forward).parameters:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)  # later versions of transformers pass them
        cache = roomy_cache(model, input_ids.shape[1] + max(row.limit for row in rows))
        options = {name: value for name, value in model_kwargs.items() if name not in ("synced_gpus", "streamer")}
        if generation_config.min_new_tokens:  # transformers then sets a minimal length too, counting padding
            logits_processor = [p for p in logits_processor if not isinstance(p, processors.MinLengthLogitsProcessor)]
        batch = _RunningBatch(rows, input_ids, mask, positions, cache, logits_processor)
        moved(batch.active)
        while True:
            logits = model(**batch.inputs, past_key_values=cache, return_dict=True, **options).logits
            batch.advance(logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device), logits.dtype)
            del logits
            if not batch.look():
                continue
            left = [place for place, number in enumerate(batch.active) if not rows[number].done]
            if not left:
                return rows
            if len(left) < len(batch.active):
                batch.keep(closed_up(left))
                moved(batch.active)

    return decode


def look_interval(device: torch.device) -> int:
    """Steps between looks at the generated tokens."""
    return 1 if device.type == "cpu" else LOOK_EVERY


class _RunningBatch:
    """The tensors of the rows that are being decoded."""

    def __init__(
        self,
        rows: Sequence[GeneratedRow],
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        cache: Any,
        logits_processors: Sequence[Any],
    ) -> None:
        self.active = list(range(len(rows)))
        self._rows = rows
        self._cache = cache
        self._width = ids.shape[1]
        self._pending: list[torch.Tensor] = []
        self._steps = 0
        self._look_every = look_interval(ids.device)
        self._padding = [0] * len(rows) if mask is None else (self._width - mask.sum(1)).tolist()
        room = max(row.limit for row in rows)
        self._mask = None if mask is None else torch.cat([mask, mask.new_ones(len(rows), room)], dim=1)
        #: Arguments of the model's next call, besides the cache.
        self.inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if positions is not None:
            self.inputs["position_ids"] = positions
            positions = positions.expand(len(rows), -1)[:, -1:]
        self._positions = positions
        self._processors = [_ready(processor) for processor in logits_processors]
        self._ids: torch.Tensor | None = None
        if self._processors:
            first = ids.gather(1, torch.tensor(self._padding, device=ids.device)[:, None])
            filled = ids if mask is None else torch.where(mask.bool(), ids, first)
            self._ids = torch.cat([filled, filled.new_zeros(len(rows), room)], dim=1)

    def advance(self, scores: torch.Tensor, dtype: torch.dtype) -> None:
        """Choose the next token of every row from its scores [rows, vocabulary], which are overwritten."""
        scores = self._process(scores)
        token = scores.argmax(dim=-1, keepdim=True)
        top = scores.gather(1, token)
        # A second maximum is far cheaper than `topk`.
        second = scores.scatter_(1, token, -torch.inf).amax(dim=-1, keepdim=True)
        close = NEAR_TIE * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        near = (top - second) < close * top.abs().clamp(min=1.0)
        self._pending.append(torch.cat([token, near.to(token.dtype)], dim=1))
        end = self._width + self._steps
        if self._ids is not None:
            self._ids[:, end] = token[:, 0]
        self._steps += 1
        self.inputs = {"input_ids": token}
        if self._positions is not None:
            self._positions = self._positions + 1
            self.inputs["position_ids"] = self._positions
        self.inputs["attention_mask"] = None if self._mask is None else self._mask[:, : end + 1]

    def look(self) -> bool:
        """Give the pending tokens to the rows if it is time; returns whether it was."""
        last = max(self._rows[number].limit for number in self.active)
        if len(self._pending) < self._look_every and self._steps < last:
            return False
        for step in torch.stack(self._pending).tolist():
            for number, (token, near) in zip(self.active, step, strict=True):
                self._rows[number].add(token, near)
        self._pending.clear()
        return True

    def keep(self, places: list[int]) -> None:
        """Keep the rows at `places` of the batch, in this order, and remove all others."""
        self.active = [self.active[place] for place in places]
        index = torch.tensor(places, device=self.inputs["input_ids"].device)
        keep_rows(self._cache, places, index)
        self.inputs = {"input_ids": self.inputs["input_ids"].index_select(0, index)}
        if self._positions is not None:
            self._positions = self._positions.index_select(0, index)
            self.inputs["position_ids"] = self._positions
        if self._ids is not None:
            self._ids = self._ids.index_select(0, index)
        if self._mask is not None:
            padded = any(self._padding[number] for number in self.active)
            self._mask = self._mask.index_select(0, index) if padded else None
        self.inputs["attention_mask"] = None if self._mask is None else self._mask[:, : self._width + self._steps]

    def _process(self, scores: torch.Tensor) -> torch.Tensor:
        if self._ids is None:
            return scores
        ids = self._ids[:, : self._width + self._steps]
        for processor in self._processors:
            scores = (
                self._by_length(processor, ids, scores) if isinstance(processor, _BY_LENGTH) else processor(ids, scores)
            )
        return scores

    def _by_length(self, processor: Any, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        groups: dict[int, list[int]] = {}
        for place, number in enumerate(self.active):
            groups.setdefault(self._padding[number], []).append(place)
        if len(groups) == 1:
            only: torch.Tensor = processor(ids[:, next(iter(groups)) :], scores)
            return only
        out = scores.clone()
        for padding, places in groups.items():
            index = torch.tensor(places, device=ids.device)
            out[index] = processor(ids.index_select(0, index)[:, padding:], scores.index_select(0, index))
        return out


def _ready(processor: Any) -> Any:
    """A processor that works in a batch that loses rows."""
    if not isinstance(processor, _ANY_PADDING + _BY_LENGTH):
        raise ConfigError(f"a packed batch cannot run {type(processor).__name__}", do="generate without packing")
    if isinstance(processor, processors.RepetitionPenaltyLogitsProcessor):
        # transformers may have told it each row's padding, which our ids do not have.
        return processors.RepetitionPenaltyLogitsProcessor(processor.penalty)
    return processor
