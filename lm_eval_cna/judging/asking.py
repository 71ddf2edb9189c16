"""Puts questions to an lm-eval model so that one failing request costs no other request its answer.

lm-eval gives a batch back whole or not at all; `lm_eval_cna.judging.replies` gets hold of every reply as it
arrives and of every failure. What has failed is asked again here, question by question, with growing waits; lm-eval's
own repeating, which knows nothing of how long a server asks to be left alone, is switched off. Where a call raises and
nobody knows for which question (`hf`, or any other model), those without a reply are asked one by one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lm_eval_cna.errors import CNAError
from lm_eval_cna.judging.failure import EMPTY, Failure, describe
from lm_eval_cna.judging.replies import Replies

logger = logging.getLogger(__name__)

#: Called with a question's key, the reply and the number of attempts that it took.
Deliver = Callable[[str, str, int], None]
_LONGEST_WAIT = 60.0
_TRIAL_TIMEOUT = 60


class Asker:
    """An lm-eval model that is asked questions.

    Args:
        lm: a loaded lm-eval model. It is the judge's own: its cache hook and retries are taken over.
        generation: lm-eval's generation arguments.
        chat: whether a question is a chat message; None finds out from the model.
        retries: further attempts at a question.
        backoff: seconds before the first of them; doubles up to 60.
    """

    def __init__(
        self, lm: Any, generation: Mapping[str, Any], *, chat: bool | None, retries: int, backoff: float
    ) -> None:
        self._lm = lm
        self._generation = dict(generation)
        self._chat = _is_chat(lm) if chat is None else chat
        self._retries, self._backoff = retries, backoff
        self._inbox = Replies()
        lm.set_cache_hook(self._inbox)
        if hasattr(lm, "amodel_call"):
            lm.amodel_call = self._inbox.guard_concurrent(lm.amodel_call)
            lm.model_call = self._inbox.guard_single(lm.model_call)
            lm.max_retries = 1

    @property
    def at_once(self) -> int:
        """Questions to put to the model in one call: four times what it works on at a time.

        Enough that its places are seldom empty; few enough that a server which turns us away is soon left alone.
        """
        batch = getattr(self._lm, "batch_size", 1)
        return 4 * max(int(getattr(self._lm, "_concurrent", 1)), batch if isinstance(batch, int) else 16, 1)

    def ask(self, questions: Mapping[str, str], deliver: Deliver, *, trial: bool = False) -> dict[str, Failure]:
        """Ask, and ask again where that can help.

        Args:
            questions: key -> text; no text twice.
            deliver: called as soon as a reply is there; a reply is never empty.
            trial: whether this is the first question of all: give up on a server that cannot be reached.

        Returns:
            The questions that got no reply, with the last failure of each.
        """
        failures: dict[str, Failure] = {}
        again = list(questions)
        for attempt in range(1, self._retries + 2):
            with _short_timeout(self._lm, trial), _no_headers_in_logs():
                last = self._attempt({key: questions[key] for key in again}, attempt, deliver)
            for key in again:
                failures.pop(key, None)
            failures |= last
            # A reply that is empty once more was not lost on the way: a filter, or all tokens spent on thinking.
            again = [key for key, f in last.items() if not f.final and not (f is EMPTY and attempt > 1)]
            if trial:
                again = [key for key in again if not last[key].unreachable]
            if not again or attempt > self._retries:
                break
            wait = max(self._backoff * 2 ** (attempt - 1), *(last[key].wait for key in again))
            logger.info("judge: asking %d questions again in %.1f s (%s)", len(again), wait, last[again[0]].reason)
            time.sleep(min(wait, _LONGEST_WAIT))
        return failures

    def _attempt(self, questions: Mapping[str, str], attempt: int, deliver: Deliver) -> dict[str, Failure]:
        """One attempt at each question; returns those that failed."""
        contexts = {key: self._shape(text) for key, text in questions.items()}
        too_long = {key for key, context in contexts.items() if self._is_too_long(context)}
        asked = {key: context for key, context in contexts.items() if key not in too_long}
        self._inbox.open(asked, lambda key, reply: deliver(key, reply, attempt))
        self._request(asked)
        failures = self._inbox.failures
        return failures | {
            key: Failure("the question is longer than the judge's context", final=True) for key in too_long
        }

    def _request(self, contexts: Mapping[str, Any]) -> None:
        """Hand the contexts to lm-eval in one call; where it raises, those without an answer one by one."""
        from lm_eval.api.instance import Instance

        if not contexts:
            return
        instances = [
            Instance("generate_until", {}, (context, dict(self._generation)), number, ("judge", number, 1))
            for number, context in enumerate(contexts.values())
        ]
        failure = EMPTY
        try:
            replies = self._lm.generate_until(instances, disable_tqdm=True)
            if self._inbox.broken is not None:
                raise self._inbox.broken
            for context, reply in zip(contexts.values(), replies, strict=True):
                self._inbox.take(context, reply)
        except CNAError:  # of the ledger, out of the inbox
            raise
        except Exception as error:  # whatever a model raises is a failed request
            failure = describe(error)
        rest = {key: context for key, context in contexts.items() if self._inbox.waits_for(context)}
        for key, context in rest.items():
            if len(contexts) == 1:
                self._inbox.fail(context, failure)
            else:
                self._request({key: context})

    def _shape(self, text: str) -> Any:
        """The question as the model takes it: lm-eval's chat messages, a rendered chat template, or plain text."""
        return self._lm.apply_chat_template([{"role": "user", "content": text}]) if self._chat else text

    def _is_too_long(self, context: Any) -> bool:
        """Whether lm-eval would cut the question, from the left, to make it fit."""
        limit, encode = getattr(self._lm, "max_length", None), getattr(self._lm, "tok_encode", None)
        if not isinstance(context, str) or not isinstance(limit, int) or encode is None:
            return False
        tokens = encode(context)
        new = int(self._generation.get("max_gen_toks", 0))
        return isinstance(tokens, list) and len(tokens) + new > limit


def _is_chat(lm: Any) -> bool:
    """Whether the model takes chat messages, or has a chat template to render them with."""
    if any("Chat" in kind.__name__ for kind in type(lm).__mro__):
        return True
    if hasattr(lm, "tokenizer_backend") and not (lm.tokenizer_backend == "huggingface" and lm.tokenized_requests):
        return False  # lm-eval would put JSON into a completion's prompt
    return bool(getattr(getattr(lm, "tokenizer", None), "chat_template", None))


@contextmanager
def _no_headers_in_logs() -> Iterator[None]:
    """lm-eval logs a failed request with its headers, and so with the key. Failures are reported by us."""
    chatty = logging.getLogger("lm_eval.models.api_models")
    before = chatty.level
    chatty.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        chatty.setLevel(before)


@contextmanager
def _short_timeout(lm: Any, short: bool) -> Iterator[None]:
    """At the start a minute must do; lm-eval's default is five."""
    before = getattr(lm, "timeout", None)
    if not short or not isinstance(before, int | float):
        yield
        return
    lm.timeout = min(before, _TRIAL_TIMEOUT)
    try:
        yield
    finally:
        lm.timeout = before
