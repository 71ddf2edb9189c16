"""What steering at m = 0 costs while generating: fold, hook and rows against the same model unsteered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import transformers as tf

from benchmarks.sides import Outcome, Side, compare, row
from benchmarks.workbench import Workbench, random_llama, some_circuit
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting

BATCH_SIZE = 8
PROMPT_TOKENS = 32
NEW_TOKENS = 24
_WHAT = "tokens per second at m = 0, 8-layer Llama of width 512"
_AGAINST = "the same model unsteered"


@row("steering-fold", f"{_WHAT}: fold", _AGAINST, rounds=25, at_least=0.99)
def fold(bench: Workbench) -> Outcome:
    """Scaled columns: no cost per token."""
    return _measure(bench, "fold", lambda model, setting: steer(model, setting, mode="fold"))


@row("steering-hook", f"{_WHAT}: hook", _AGAINST, rounds=25, at_least=0.98)
def hook(bench: Workbench) -> Outcome:
    """A pre-hook on every touched down-projection."""
    return _measure(bench, "hook", lambda model, setting: steer(model, setting, mode="hook"))


@row("steering-rows", f"{_WHAT}: rows", _AGAINST, rounds=25, at_least=0.97)
def rows(bench: Workbench) -> Outcome:
    """A hook with one multiplier per batch row, all of them 0."""
    return _measure(bench, "rows", assigned)


@contextmanager
def assigned(model: Any, setting: Setting, batch_size: int = BATCH_SIZE) -> Iterator[None]:
    """`RowSteering` with every row of a batch at one setting."""
    with RowSteering(model, [setting]) as steering:
        steering.assign([0] * batch_size)
        yield


def _measure(bench: Workbench, mode: str, steered: Callable[[Any, Setting], AbstractContextManager[Any]]) -> Outcome:
    tokenizer = tf.AutoTokenizer.from_pretrained(bench.organism.instruct)
    model = random_llama(seed=bench.seed, layers=8, hidden=512, width=2048, heads=8, vocabulary=len(tokenizer))
    return generating(bench, mode, model, tokenizer, steered)


def generating(
    bench: Workbench,
    mode: str,
    model: Any,
    tokenizer: Any,
    steered: Callable[[Any, Setting], AbstractContextManager[Any]],
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """The row for any model: `NEW_TOKENS` tokens for each of `batch_size` prompts, setting up and undoing included."""
    setting = Setting(some_circuit(model, tokenizer), 0.0)
    draw = torch.Generator().manual_seed(bench.seed)
    ids = torch.randint(10, len(tokenizer), (batch_size, PROMPT_TOKENS), generator=draw).to(model.device)

    def unsteered() -> None:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
            )
        assert out.shape[1] == PROMPT_TOKENS + NEW_TOKENS

    def with_steering() -> None:
        with steered(model, setting):
            unsteered()

    outcome = compare(
        Side(mode, with_steering),
        Side("unsteered", unsteered),
        bench.rounds,
        note=f"{batch_size} prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones each, no early end",
    )
    tokens = batch_size * NEW_TOKENS
    outcome.details["tokens per second"] = {
        "unsteered": tokens / sorted(outcome.theirs)[len(outcome.theirs) // 2],
        mode: tokens / sorted(outcome.ours)[len(outcome.ours) // 2],
    }
    outcome.details["neurons"] = len(setting.intervention.neurons)  # type: ignore[union-attr]
    return outcome
