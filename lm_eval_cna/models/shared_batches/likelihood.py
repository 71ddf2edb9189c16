"""Log-likelihoods of the same requests under several settings; layers below the steered ones are computed once.

A setting changes nothing below the first layer that it touches. So each prefix and each batch is read under each
setting in turn: the first pass records what leaves the last common layer, and in the other passes the common layers
only replay this record. Only one batch's record is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

from torch import nn
from transformers.cache_utils import DynamicCache

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.models.decoding.likelihood import Request, score_passes
from lm_eval_cna.models.decoding.prefix_reader import PassSchedule, Score, can_share
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering.modes import MODES, Mode
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting

ROWS = "rows"


def score_settings(
    lm: CNAHFLM, requests: Sequence[tuple[str, str]], settings: Sequence[Setting], *, mode: str = "auto"
) -> list[list[Score]]:
    """Score requests (context, continuation) under each setting, as `lm.loglikelihood` would.

    Settings may stand in any order, the baseline among them. `mode` is one of `lm_eval_cna.steering.apply`, or "rows"
    to steer with `RowSteering`. Afterwards the model is steered as it was before.

    Returns:
        For each setting, the log-likelihood and greedy flag of each request.

    Raises:
        ConfigError: the mode is unknown, or a request has no token.
        InterventionError, SteeringError: a setting cannot be applied.
    """
    if mode not in (*MODES, ROWS):
        raise ConfigError("mode", got=mode, allowed=", ".join((*MODES, ROWS)))
    encoded = [_encoded(lm, *request) for request in requests]
    with ExitStack() as stack:
        stack.callback(_steer_back, lm, lm.setting, lm.mode)
        lm.unsteer()
        switch = _switched_by_row(lm, settings, stack) if mode == ROWS else _switched_whole(lm, settings, mode, stack)
        found: list[list[Score]] = [[(0.0, False)] * len(encoded) for _ in settings]
        if not can_share(lm):
            for position in range(len(settings)):
                switch(position)
                found[position] = lm._loglikelihood_tokens(encoded, disable_tqdm=True)
            return found
        schedule = _PassPerSetting(lm, settings, switch)
        stack.callback(schedule.close)
        for position, span, score in score_passes(lm, encoded, schedule):
            found[position][span.request] = score
        return found


def _steer_back(lm: CNAHFLM, setting: Setting, mode: Mode) -> None:
    lm.mode = mode
    lm.steer(setting)


def _encoded(lm: CNAHFLM, context: str, continuation: str) -> Request:
    """Tokens of a request, as lm-eval's `TemplateLM.loglikelihood` makes them; without a key for its cache."""
    if context:
        return (None, *lm._encode_pair(context, continuation))
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    prefix = lm.prefix_token_id
    return (None, tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else (None, [prefix], tokens)


def _switched_whole(lm: CNAHFLM, settings: Sequence[Setting], mode: str, stack: ExitStack) -> Callable[[int], None]:
    """A function that steers the whole model with the setting at a position."""
    lm.mode = cast(Mode, mode)
    stack.callback(lm.unsteer)

    def switch(position: int) -> None:
        if lm.setting != settings[position]:
            lm.steer(settings[position])

    return switch


def _switched_by_row(lm: CNAHFLM, settings: Sequence[Setting], stack: ExitStack) -> Callable[[int], None]:
    """A function that lets all rows of the next batches follow the setting at a position."""
    steering = stack.enter_context(RowSteering(lm.model, settings, lm.architecture))
    current = 0

    def assign(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs["input_ids"]
        steering.assign([current] * tokens.shape[0])

    stack.callback(lm.architecture.stack.register_forward_pre_hook(assign, with_kwargs=True).remove)

    def switch(position: int) -> None:
        nonlocal current
        current = position

    return switch


class _PassPerSetting(PassSchedule):
    """One pass per setting; the layers that no setting touches are computed in the first."""

    def __init__(self, lm: CNAHFLM, settings: Sequence[Setting], switch: Callable[[int], None]) -> None:
        self.count = len(settings)
        self._switch = switch
        touched = [min(s.intervention.layers) for s in settings if s.intervention is not None and not s.is_baseline]
        layers = lm.architecture.layers
        common = min(touched, default=len(layers)) if self.count > 1 else 0
        self._blocks = [layer.block for layer in layers[:common]]
        self._outputs: list[Any] = []
        self._caches: list[DynamicCache] = []
        self._next_output = self._next_cache = 0
        self._hooks = ExitStack()

    def close(self) -> None:
        """Let the common layers compute again."""
        self._hooks.close()

    def before_pass(self, number: int) -> None:
        """Steer; record in the first pass, replay in the others."""
        self._switch(number)
        self._next_output = self._next_cache = 0
        if not self._blocks or number > 1:
            return
        self._hooks.close()
        if number == 0:
            self._outputs, self._caches = [], []
            self._hooks.callback(self._blocks[-1].register_forward_hook(self._record).remove)
        else:
            for block in self._blocks:
                self._hooks.callback(_replaced_forward(block, self._replay))
            # Called once per forward pass, after all common layers.
            self._hooks.callback(self._blocks[-1].register_forward_hook(self._advance).remove)

    def prefix_read(self, cache: DynamicCache) -> None:
        """Give a replayed pass the keys and values of the layers that it did not compute."""
        common = len(self._blocks)
        if self._next_cache == len(self._caches):
            self._caches.append(cache)
        else:
            cache.layers[:common] = self._caches[self._next_cache].layers[:common]
        self._next_cache += 1

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._outputs.append(output)

    def _replay(self, *args: Any, **kwargs: Any) -> Any:
        return self._outputs[self._next_output]

    def _advance(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._next_output += 1


def _replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace a module's `forward`; returns a function that undoes it."""
    own = block.__dict__.get("forward")  # accelerate sets one, for example
    block.forward = forward

    def undo() -> None:
        if own is None:
            del block.forward
        else:
            block.forward = own

    return undo
