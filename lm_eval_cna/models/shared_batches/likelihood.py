"""Log-likelihoods of the same requests under several settings, layers below the steered ones computed once.

A setting changes nothing below the first layer that it touches. So each trunk and each batch is read under
all settings in turn; the first pass records what leaves the last common layer, and in the others that layer and all
before it do nothing but hand the record on. Only the record of one batch is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

from torch import nn
from transformers.cache_utils import DynamicCache

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.models.decoding.likelihood import Request, score_passes
from lm_eval_cna.models.decoding.prefix_reader import Passes, Score, can_share
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering.modes import MODES, Mode
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting

ROWS = "rows"


def score_settings(
    lm: CNAHFLM, requests: Sequence[tuple[str, str]], settings: Sequence[Setting], *, mode: str = "auto"
) -> list[list[Score]]:
    """What `lm.loglikelihood` says under each setting.

    Args:
        lm: the model; however it is steered, it is so again afterwards.
        requests: (context, continuation) as lm-eval has them.
        settings: in any order, the baseline may be among them.
        mode: "auto", "fold" or "hook" as in `lm_eval_cna.steering.apply`, or "rows" for that of `RowSteering`.

    Returns:
        For each setting, the log-likelihood and greedy flag of each request.

    Raises:
        ConfigError: the mode is none of these, or a request has no token.
        InterventionError, SteeringError: a setting cannot be applied.
    """
    if mode not in (*MODES, ROWS):
        raise ConfigError("mode", got=mode, allowed=", ".join((*MODES, ROWS)))
    encoded = [_encoded(lm, *request) for request in requests]
    with ExitStack() as stack:
        stack.callback(_steer_back, lm, lm.setting, lm.mode)
        lm.unsteer()
        steered = _Rows(lm, settings) if mode == ROWS else _Applied(lm, settings, mode)
        stack.callback(steered.undo)
        if not can_share(lm):
            return [_whole(lm, encoded, steered, position) for position in range(len(settings))]
        found: list[list[Score]] = [[(0.0, False)] * len(encoded) for _ in settings]
        passes = stack.enter_context(_LowerLayers(lm, settings, steered))
        for position, asked, score in score_passes(lm, encoded, passes):
            found[position][asked.request] = score
        return found


def _steer_back(lm: CNAHFLM, setting: Setting, mode: Mode) -> None:
    lm.mode = mode
    lm.steer(setting)


def _encoded(lm: CNAHFLM, context: str, continuation: str) -> Request:
    """Tokens of a request, as lm-eval's `TemplateLM.loglikelihood` makes them. The response cache is told nothing."""
    if context:
        return (None, *lm._encode_pair(context, continuation))
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    prefix = lm.prefix_token_id
    return (None, tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else (None, [prefix], tokens)


def _whole(lm: CNAHFLM, encoded: list[Request], steered: _Applied | _Rows, position: int) -> list[Score]:
    steered.switch(position)
    return lm._loglikelihood_tokens(encoded, disable_tqdm=True)


class _Applied:
    """Settings that are applied to the whole model in turn."""

    def __init__(self, lm: CNAHFLM, settings: Sequence[Setting], mode: str) -> None:
        self._lm, self._settings = lm, settings
        lm.mode = cast(Mode, mode)

    def switch(self, position: int) -> None:
        if self._lm.setting != self._settings[position]:
            self._lm.steer(self._settings[position])

    def undo(self) -> None:
        self._lm.unsteer()


class _Rows:
    """Settings that all rows of a batch follow in turn."""

    def __init__(self, lm: CNAHFLM, settings: Sequence[Setting]) -> None:
        self._steering = RowSteering(lm.model, settings, lm.architecture)
        self._position = 0
        self._handle = lm.architecture.stack.register_forward_pre_hook(self._assign, with_kwargs=True)

    def _assign(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs["input_ids"]
        self._steering.assign([self._position] * tokens.shape[0])

    def switch(self, position: int) -> None:
        self._position = position

    def undo(self) -> None:
        self._handle.remove()
        self._steering.undo()


class _LowerLayers(Passes):
    """One pass per setting; the layers that no setting touches are computed in the first. A context manager."""

    def __init__(self, lm: CNAHFLM, settings: Sequence[Setting], steered: _Applied | _Rows) -> None:
        self.count = len(settings)
        self._steered = steered
        touched = [min(s.intervention.layers) for s in settings if s.intervention is not None and not s.is_baseline]
        layers = lm.architecture.layers
        common = min(touched, default=len(layers)) if self.count > 1 else 0
        self._blocks = [layer.block for layer in layers[:common]]
        self._outputs: list[Any] = []
        self._caches: list[DynamicCache] = []
        self._next_output = self._next_cache = 0
        self._stop: list[Callable[[], Any]] = []

    def __enter__(self) -> _LowerLayers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._let_go()

    def begin(self, position: int) -> None:
        """Steer; record in the first pass, replay in the others."""
        self._steered.switch(position)
        self._next_output = self._next_cache = 0
        if not self._blocks or position > 1:
            return
        self._let_go()
        if position == 0:
            self._outputs, self._caches = [], []
            self._stop.append(self._blocks[-1].register_forward_hook(self._record).remove)
        else:
            for block in self._blocks:
                self._stop.append(_replaced_forward(block, self._replay))
            # Called once per forward pass, after all common layers.
            self._stop.append(self._blocks[-1].register_forward_hook(self._advance).remove)

    def keep(self, cache: DynamicCache) -> None:
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

    def _let_go(self) -> None:
        while self._stop:
            self._stop.pop()()


def _replaced_forward(block: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Put another `forward` into a module; returns what undoes it."""
    own = block.__dict__.get("forward")  # of accelerate, say
    block.forward = forward

    def undo() -> None:
        if own is None:
            del block.forward
        else:
            block.forward = own

    return undo
