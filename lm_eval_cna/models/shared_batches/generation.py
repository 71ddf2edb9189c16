"""Greedy responses in batches whose rows follow different settings, each equal to the response of its row alone.

What `CNAHFLM.generate_until` does to one prompt under one setting, done for many at once: the same ids go
in, the same logits processors run, a row ends where it would end alone (end tokens, stop strings, the limit), and the
text is decoded and cut by the same rules. A row that ends leaves the batch, so a short refusal does not wait for a
long answer. HFLM itself lets ended rows wait, and where a row ends only by a stop string lets it write on until all
rows have ended; the text after the first stop string is cut off by both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text

from lm_eval_cna.errors import ConfigError, SteeringError
from lm_eval_cna.models.decoding.greedy import GeneratedRow, greedy_rows
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.shared_batches.capacity import base_of
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.modes import MODES, Mode
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.prompts import pad_left, pad_token_id


@dataclass(frozen=True)
class GenerationJob:
    """One response to generate."""

    ids: tuple[int, ...]
    """The encoded prompt, left-truncated already."""
    setting: int
    """Position among the generator's settings."""
    max_new_tokens: int
    """At least 1."""
    stop: tuple[str, ...] = ()
    """Strings that end the text and are cut off (lm-eval's `until`)."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise ConfigError("a prompt has no token")
        if self.max_new_tokens < 1:
            raise ConfigError("max_new_tokens", got=self.max_new_tokens, allowed="1 or more")


@dataclass(frozen=True)
class Completion:
    """One response."""

    text: str
    """As `generate_until` returns it."""
    tokens: int
    """Generated, the one that ended the response included."""
    near_ties: int
    """Steps at which the two largest processed scores were closer than `greedy.NEAR_TIE`."""


class SharedGenerator:
    """Generates batches of responses. A context manager; between entering and leaving it the model is its own.

    Args:
        lm: the model. A steering it has is undone when the generator is entered.
        settings: the settings that jobs name by position.
        mode: "rows" lets the jobs of one batch follow different settings. "fold", "hook" or "auto" apply one setting
            around the batch, which all its jobs must share.

    Raises:
        InterventionError, SteeringError, ArchitectureError: from entering: see `lm_eval_cna.steering.apply`.
    """

    def __init__(self, lm: CNAHFLM, settings: Sequence[Setting], *, mode: Mode | Literal["rows"] = "rows") -> None:
        if mode not in (*MODES, "rows"):
            raise SteeringError("mode", got=mode, allowed="rows, " + ", ".join(MODES))
        self._lm = lm
        self._settings = tuple(settings)
        self._mode = mode
        self._stack = ExitStack()
        self._rows: RowSteering | None = None
        self._applied: int | None = None
        self._eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)

    def __enter__(self) -> SharedGenerator:
        self._lm.unsteer()
        # A model of an unknown family can still be run unsteered.
        if self._mode == "rows" and not all(setting.is_baseline for setting in self._settings):
            self._rows = self._stack.enter_context(RowSteering(self._lm.model, self._settings, self._lm.architecture))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._rows = self._applied = None

    def generate(self, jobs: Sequence[GenerationJob]) -> list[Completion]:
        """Generate one batch.

        Args:
            jobs: the batch; equal batches give equal results.

        Returns:
            The responses, in the jobs' order.

        Raises:
            SteeringError: the jobs' settings differ in a mode that applies one around the batch.
        """
        if not jobs:
            return []
        if self._mode != "rows":
            self._apply({job.setting for job in jobs})
        config = base_of(self._lm).generation_config
        limits = {job.max_new_tokens for job in jobs}
        if config.forced_eos_token_id is not None and len(limits) > 1:  # it is forced at one length for all rows
            found: dict[int, Completion] = {}
            for limit in sorted(limits):
                places = [place for place, job in enumerate(jobs) if job.max_new_tokens == limit]
                found.update(zip(places, self._batch([jobs[place] for place in places]), strict=True))
            return [found[place] for place in range(len(jobs))]
        return self._batch(jobs)

    def _batch(self, jobs: Sequence[GenerationJob]) -> list[Completion]:
        lm, model = self._lm, self._lm.model
        config = base_of(lm).generation_config
        rows = [
            GeneratedRow(config.max_new_tokens or job.max_new_tokens, self._ends, self._stopper(job.stop))
            for job in jobs
        ]
        ids, mask = pad_left([job.ids for job in jobs], pad_token_id(lm.tokenizer))

        def moved(numbers: list[int]) -> None:
            if self._rows is not None:
                self._rows.assign([jobs[number].setting for number in numbers])

        with (
            torch.inference_mode(),
            torch.autocast(lm.device.type, lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None),
        ):
            model.generate(
                input_ids=ids.to(lm.device),
                attention_mask=mask.to(lm.device),
                max_length=ids.shape[1] + max(job.max_new_tokens for job in jobs),
                do_sample=False,
                use_cache=True,
                pad_token_id=pad_token_id(lm.tokenizer),
                custom_generate=greedy_rows(rows, moved),
            )
        return [
            Completion(self._text(row.tokens, job.stop), len(row.tokens), row.near_ties)
            for job, row in zip(jobs, rows, strict=True)
        ]

    @property
    def _ends(self) -> frozenset[int]:
        """Tokens that end a response: those of the generation settings, and the one that HFLM adds to `until`."""
        ends = base_of(self._lm).generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return frozenset([*ends, self._lm.eot_token_id])

    def _stopper(self, stop: tuple[str, ...]) -> Callable[[Sequence[int]], bool] | None:
        """What HFLM tests after each token: a stop string in the text of as many tokens as it encodes to, and two."""
        if not stop:
            return None
        tokenizer = self._lm.tokenizer
        reach = [(text, len(tokenizer.encode(text, add_special_tokens=False)) + 2) for text in stop]

        def stopped(tokens: Sequence[int]) -> bool:
            tails = {length: tokenizer.decode(tokens[-length:]) for length in {length for _, length in reach}}
            return any(text in tails[length] for text, length in reach)

        return stopped

    def _text(self, tokens: list[int], stop: tuple[str, ...]) -> str:
        """HFLM's decoding: thinking left out, special tokens left out, cut at the first stop string."""
        think = self._lm.think_end_token
        if isinstance(think, int) and think in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(think) :]
        text = self._lm.tok_decode(tokens)
        cut: str = postprocess_generated_text(
            generation=text.lstrip() if isinstance(think, int) else text,
            stop=handle_stop_sequences(list(stop), eos=self._eos),
            think_end_token=think if isinstance(think, str) else None,
        )
        return cut

    def _apply(self, chosen: set[int]) -> None:
        """Apply the one setting of a batch, unless it is applied already."""
        if len(chosen) > 1:
            raise SteeringError("settings in one batch", got=sorted(chosen), allowed=f"one in mode {self._mode}")
        (position,) = chosen
        if position == self._applied:
            return
        self._stack.close()
        self._applied = None
        setting = self._settings[position]
        if setting.intervention is not None:
            assert self._mode != "rows"
            self._stack.enter_context(
                steer(self._lm.model, setting, mode=self._mode, architecture=self._lm.architecture)
            )
        self._applied = position
