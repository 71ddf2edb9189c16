"""Describes why a question failed, and whether asking again can help.

lm-eval calls servers through requests and through aiohttp. Their errors are told apart by their attributes, so that
neither library is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Answers of a server that say "not now": asking again can help.
_NOT_NOW = {408, 409, 425, 429}
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Failure:
    """One failed attempt."""

    reason: str
    """One line for people."""
    final: bool = False
    """Asking again cannot help."""
    unreachable: bool = False
    """No server is there, or it does not answer in time; the trial question does not wait for it."""
    wait: float = 0.0
    """Seconds to wait, as the server asked; at most 60."""


EMPTY = Failure("the judge's reply was empty: filtered, or all of max_gen_toks spent on thinking")


def describe(error: Exception) -> Failure:
    """Describe an exception that lm-eval's model raised."""
    response: Any = getattr(error, "response", None)
    status = getattr(error, "status", None)  # aiohttp
    status = getattr(response, "status_code", None) if status is None else status  # requests
    if isinstance(status, int) and status >= 400:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
        final = status < 500 and status not in _NOT_NOW
        return Failure(f"HTTP status {status}", final=final, wait=_seconds(headers.get("Retry-After")))
    names = {kind.__name__ for kind in type(error).__mro__}
    what = " ".join(f"{type(error).__name__}: {error}".split())
    reason = what if len(what) <= 200 else what[:200] + "..."
    if names & {"TimeoutError", "Timeout"}:
        return Failure(f"no answer in time ({reason})", unreachable=True)
    if "ClientConnectorError" in names or ("ConnectionError" in names and "NewConnectionError" in what):
        return Failure(f"no connection ({reason})", unreachable=True)
    # A missing key or package, a wrong argument: known by kind, since servers' failures are errors of input and output.
    # A reply that is no JSON is a ValueError too, and may be a proxy's page that is gone next time.
    final = isinstance(error, (ImportError, TypeError, AttributeError, NotImplementedError)) or "API key" in what
    return Failure(reason, final=final)


def _seconds(value: Any) -> float:
    """Seconds of a Retry-After header; its other form, a date, counts as none."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return 0.0
    return min(seconds, _LONGEST_WAIT) if seconds > 0 else 0.0  # NaN is not
