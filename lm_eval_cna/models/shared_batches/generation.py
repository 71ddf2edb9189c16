"""Greedy responses in batches whose rows follow different settings, each equal to its row's response alone.

It does what `CNAHFLM.generate_until` does to one prompt under one setting, for many at once: the same token ids, logits
processors, end conditions (end tokens, stop strings, the limit) and decoding. A finished row leaves the batch, so a
short refusal does not wait for a long answer.
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
    """The encoded prompt, truncated on the left already; at least one token."""
    setting: int
    """Position among the generator's settings."""
    max_new_tokens: int
    """The most tokens to generate, at least 1."""
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
    """The response, as `generate_until` returns it."""
    tokens: int
    """Tokens generated, including the one that ended the response."""
    near_ties: int
    """Steps at which the two largest scores, after all processors, were closer than `greedy.NEAR_TIE`."""


class SharedGenerator:
    """Generates batches of responses. A context manager, inside which nothing else may steer the model.

    Args:
        lm: the model. Entering the context undoes its own steering.
        settings: the settings that jobs name by position.
        mode: "rows" lets the jobs of one batch follow different settings. "fold", "hook" and "auto" steer the whole
            model, so all jobs of a batch must share a setting.

    Raises:
        SteeringError: the mode is unknown.
        InterventionError, SteeringError, ArchitectureError: on entering, as in `lm_eval_cna.steering.apply`.
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
        """Generate one batch, in the jobs' order; equal batches give equal results.

        Raises:
            SteeringError: the jobs' settings differ in a mode other than "rows".
        """
        if not jobs:
            return []
        if self._mode != "rows":
            self._apply({job.setting for job in jobs})
        config = base_of(self._lm).generation_config
        limits = {job.max_new_tokens for job in jobs}
        if (
            config.forced_eos_token_id is not None and len(limits) > 1
        ):  # transformers forces it at one length for all rows
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
        """Tokens that end a response: the generation settings' and the one that HFLM adds to `until`."""
        ends = base_of(self._lm).generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return frozenset([*ends, self._lm.eot_token_id])

    def _stopper(self, stop: tuple[str, ...]) -> Callable[[Sequence[int]], bool] | None:
        """As in HFLM: whether the last tokens contain a stop string; two tokens more than the string encodes to."""
        if not stop:
            return None
        tokenizer = self._lm.tokenizer
        reach = [(text, len(tokenizer.encode(text, add_special_tokens=False)) + 2) for text in stop]

        def stopped(tokens: Sequence[int]) -> bool:
            tails = {length: tokenizer.decode(tokens[-length:]) for length in {length for _, length in reach}}
            return any(text in tails[length] for text, length in reach)

        return stopped

    def _text(self, tokens: list[int], stop: tuple[str, ...]) -> str:
        """As in HFLM: the text without thinking and special tokens, cut at the first stop string."""
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
        """Steer the whole model with a batch's one setting."""
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
