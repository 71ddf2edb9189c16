"""Catches an lm-eval model's replies and failures one by one.

When a request fails for good, an API model of lm-eval cancels the others and loses what had arrived. So replies are
taken from lm-eval's cache hook, which gets each as it arrives; `amodel_call` (concurrent requests) is wrapped to record
a failure and return, and `model_call` (single ones) to record it before it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval_cna.errors import CNAError
from lm_eval_cna.judging.failure import EMPTY, Failure, describe

#: Takes the place of a failed request's reply in lm-eval's list; compared by identity.
_NO_REPLY = str(b"no reply", "ascii")


class Replies:
    """Replies and failures of one round of questions. Replaces lm-eval's cache hook.

    Attributes:
        failures: the questions of this round that failed, by key.
        broken: an error while a reply was stored, such as a ledger that cannot be written; None if there was none.
    """

    #: lm-eval looks at it to see whether there is a cache.
    dbdict = None

    def __init__(self) -> None:
        self.failures: dict[str, Failure] = {}
        self.broken: CNAError | None = None
        self._waiting: dict[str, str] = {}
        self._deliver: Callable[[str, str], None] = lambda _key, _reply: None

    def open(self, contexts: Mapping[str, Any], deliver: Callable[[str, str], None]) -> None:
        """Begin a round.

        Args:
            contexts: key of each question -> its context.
            deliver: called with the key and the reply.
        """
        self.failures, self.broken = {}, None
        self._waiting = {_text_of(context): key for key, context in contexts.items()}
        self._deliver = deliver

    def waits_for(self, context: Any) -> bool:
        """Whether the question has neither a reply nor a failure yet."""
        return _text_of(context) in self._waiting

    def add_partial(self, _attribute: str, request: Any, reply: Any) -> None:
        """Called by lm-eval for each finished request."""
        self.take(request[0], reply)

    def take(self, context: Any, reply: Any) -> None:
        """Deliver a reply, unless it was delivered before; an empty one is a failure."""
        if reply is _NO_REPLY:
            return
        key = self._waiting.pop(_text_of(context), None)
        if key is None:  # delivered already, or failed
            return
        if isinstance(reply, str) and reply.strip():
            self._deliver(key, reply)
        else:
            self.failures[key] = EMPTY

    def fail(self, context: Any, failure: Failure) -> None:
        """Record a failure, unless the question has its reply."""
        key = self._waiting.pop(_text_of(context), None)
        if key is not None:
            self.failures[key] = failure

    def guard_concurrent(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap lm-eval's `amodel_call` to record a failure and return where it would raise."""

        async def guarded(*args: Any, cache_keys: Any = None, **kwargs: Any) -> Any:
            if self.broken is not None:
                return [_NO_REPLY] * len(cache_keys)
            try:
                return await call(*args, cache_keys=cache_keys, **kwargs)
            except CNAError as error:  # the ledger's; raised here, it would come out of every request under way
                self.broken = error
                return [_NO_REPLY] * len(cache_keys)
            except Exception as error:
                self._note([context for context, _generation in cache_keys], error)
                return [_NO_REPLY] * len(cache_keys)

        return guarded

    def guard_single(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap lm-eval's `model_call` to record the question that failed before it raises."""

        def guarded(messages: Any, **kwargs: Any) -> Any:
            try:
                return call(messages, **kwargs)
            except Exception as error:
                self._note([message for message in messages if not isinstance(message, list)], error)
                raise

        return guarded

    def _note(self, contexts: list[Any], error: Exception) -> None:
        """Record the failure of a request with one question; several stay open, to be asked alone."""
        if len(contexts) == 1:
            self.fail(contexts[0], describe(error))


def _text_of(context: Any) -> str:
    return context if isinstance(context, str) else str(context.prompt)  # lm-eval's JsonChatStr
