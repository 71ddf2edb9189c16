"""Where an lm-eval model's replies and failures arrive, one by one.

No lm-eval. An API model of lm-eval cancels what is under way at the first request that fails for good, and
what had arrived is lost. Without touching its batching and concurrency:

- replies are taken where lm-eval reports each one as it arrives, for its response cache (`LM.cache_hook`);
- concurrent requests go through `amodel_call`, which is wrapped to note a failure and return, so the others go on;
- single requests go through `model_call`, which is wrapped to note whose failure it was before it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval_cna.errors import CNAError
from lm_eval_cna.judging.failure import EMPTY, Failure, describe

#: Stands in lm-eval's list of replies for a request that failed; known by identity.
_NO_REPLY = str(b"no reply", "ascii")


class Replies:
    """Stands in the place of lm-eval's cache hook.

    Attributes:
        failures: questions of this round that failed, by key.
        broken: an error of ours that a reply ran into, a ledger that cannot be written: not the judge's failure.
    """

    #: lm-eval looks at it to see whether there is a cache.
    dbdict = None

    def __init__(self) -> None:
        self.failures: dict[str, Failure] = {}
        self.broken: CNAError | None = None
        self._waiting: dict[str, str] = {}
        self._deliver: Callable[[str, str], None] = lambda _key, _reply: None

    def open(self, contexts: Mapping[str, Any], deliver: Callable[[str, str], None]) -> None:
        """Begin a round: key -> context of each question, and what is called with key and reply."""
        self.failures, self.broken = {}, None
        self._waiting = {_text_of(context): key for key, context in contexts.items()}
        self._deliver = deliver

    def waits_for(self, context: Any) -> bool:
        """Whether the question has neither a reply nor a failure yet."""
        return _text_of(context) in self._waiting

    def add_partial(self, _attribute: str, request: Any, reply: Any) -> None:
        """lm-eval's call for each finished request."""
        self.take(request[0], reply)

    def take(self, context: Any, reply: Any) -> None:
        """A reply, possibly one that is here already; an empty one is a failure."""
        if reply is _NO_REPLY:
            return
        key = self._waiting.pop(_text_of(context), None)
        if key is None:  # here already, or failed
            return
        if isinstance(reply, str) and reply.strip():
            self._deliver(key, reply)
        else:
            self.failures[key] = EMPTY

    def fail(self, context: Any, failure: Failure) -> None:
        """A failure, unless the reply is here already."""
        key = self._waiting.pop(_text_of(context), None)
        if key is not None:
            self.failures[key] = failure

    def guard_concurrent(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """lm-eval's `amodel_call`, noting a failure and returning where it would raise."""

        async def guarded(*args: Any, cache_keys: Any = None, **kwargs: Any) -> Any:
            if self.broken is not None:
                return [_NO_REPLY] * len(cache_keys)
            try:
                return await call(*args, cache_keys=cache_keys, **kwargs)
            except CNAError as error:  # of the ledger; raised here, it would come out of every task under way
                self.broken = error
                return [_NO_REPLY] * len(cache_keys)
            except Exception as error:
                self._note([context for context, _generation in cache_keys], error)
                return [_NO_REPLY] * len(cache_keys)

        return guarded

    def guard_single(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """lm-eval's `model_call`, noting whose failure it was before it raises."""

        def guarded(messages: Any, **kwargs: Any) -> Any:
            try:
                return call(messages, **kwargs)
            except Exception as error:
                self._note([message for message in messages if not isinstance(message, list)], error)
                raise

        return guarded

    def _note(self, contexts: list[Any], error: Exception) -> None:
        """Whose failure it was is known only of a request about one question; others stay open, to be asked alone."""
        if len(contexts) == 1:
            self.fail(contexts[0], describe(error))


def _text_of(context: Any) -> str:
    return context if isinstance(context, str) else str(context.prompt)  # lm-eval's JsonChatStr
