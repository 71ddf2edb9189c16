"""Asks an lm-eval model questions so that one failed request does not lose the answers of the others.

lm-eval returns a batch whole or not at all; `lm_eval_cna.judging.replies` catches each reply and failure as it
arrives. Failed questions are asked again here, with growing waits. lm-eval's own retries are off, since they ignore the
wait that a server asks for. Where a call raises without saying for which question, those without a reply are asked one
by one.
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
        lm: a loaded lm-eval model that only the judge uses: its cache hook and retries are replaced.
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
        self._replies = Replies()
        lm.set_cache_hook(self._replies)
        if hasattr(lm, "amodel_call"):
            lm.amodel_call = self._replies.guard_concurrent(lm.amodel_call)
            lm.model_call = self._replies.guard_single(lm.model_call)
            lm.max_retries = 1

    @property
    def at_once(self) -> int:
        """Questions to ask in one call: four times what the model works on at a time.

        Enough to keep it busy; few enough to stop soon when a server refuses.
        """
        batch = getattr(self._lm, "batch_size", 1)
        return 4 * max(int(getattr(self._lm, "_concurrent", 1)), batch if isinstance(batch, int) else 16, 1)

    def ask(self, questions: Mapping[str, str], deliver: Deliver, *, trial: bool = False) -> dict[str, Failure]:
        """Ask all questions, and ask failed ones again where that can help.

        Args:
            questions: key -> text; no text twice.
            deliver: called as soon as a reply is there; a reply is never empty.
            trial: whether this is the trial question: do not wait for a server that cannot be reached.

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
            # A reply that is empty a second time was filtered, or all its tokens went into thinking.
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
        self._replies.open(asked, lambda key, reply: deliver(key, reply, attempt))
        self._request(asked)
        failures = self._replies.failures
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
            if self._replies.broken is not None:
                raise self._replies.broken
            for context, reply in zip(contexts.values(), replies, strict=True):
                self._replies.take(context, reply)
        except CNAError:  # the ledger failed while a reply was delivered
            raise
        except Exception as error:  # whatever a model raises is a failed request
            failure = describe(error)
        rest = {key: context for key, context in contexts.items() if self._replies.waits_for(context)}
        for key, context in rest.items():
            if len(contexts) == 1:
                self._replies.fail(context, failure)
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
    """Silence lm-eval, which logs a failed request with its headers and so with the key; we report it ourselves."""
    chatty = logging.getLogger("lm_eval.models.api_models")
    before = chatty.level
    chatty.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        chatty.setLevel(before)


@contextmanager
def _short_timeout(lm: Any, short: bool) -> Iterator[None]:
    """Wait at most a minute for the trial question; lm-eval's default is five."""
    before = getattr(lm, "timeout", None)
    if not short or not isinstance(before, int | float):
        yield
        return
    lm.timeout = min(before, _TRIAL_TIMEOUT)
    try:
        yield
    finally:
        lm.timeout = before
