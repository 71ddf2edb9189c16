"""The project's exceptions. A message says what is wrong, what was given, what is allowed and what to do.

The command line prints such a message on one line and exits with status 2. Any other exception is a bug of this project
and keeps its traceback.
"""

from __future__ import annotations

from reprlib import Repr

_MOST = 200  # characters of a value that a message shows
_LONGEST = 2_500  # characters of a message
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxset = 4, 12, 12, 12, 12
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 2 * _MOST


class CNAError(Exception):
    """An error that the user can fix.

    Args:
        what: what is wrong, without a full stop.
        got: the wrong value, shown as by `repr` and cut if long.
        allowed: what is accepted.
        do: how to fix it.

    Example:
        >>> from lm_eval_cna import CNAError, read_intervention
        >>> try:
        ...     read_intervention("absent.json")
        ... except CNAError as error:
        ...     print(error)
        no such intervention file; got 'absent.json'; make one with `lm-eval-cna discover`
    """

    def __init__(self, what: str, *, got: object = None, allowed: str | None = None, do: str | None = None) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {_cut(_shown(got), _MOST)}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if do is not None:
            parts.append(do)
        # One line, whatever a file name or a parser's message contains.
        super().__init__(_cut(" ".join("; ".join(parts).split()), _LONGEST))


def _shown(value: object) -> str:
    """Like `repr`, but limited: with aliases a hostile file can hold values far larger than the file."""
    try:
        return repr(value) if isinstance(value, str) and len(value) <= _MOST else _SHORT.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"a {type(value).__name__} that is too large to show"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def out_of_memory(error: BaseException) -> str | None:
    """One line on an out-of-memory error of the host or an accelerator; None for any other error."""
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch may be missing
        return None
    first = str(error).split(". ")[0] or "no memory left"
    advice = "give a smaller batch_size, a smaller dtype, or a larger device or more of them"
    return " ".join(f"out of memory: {first}; {advice}".split())


class ConfigError(CNAError):
    """An argument, option or configuration value is wrong."""


class ContrastError(CNAError):
    """A contrast set cannot be read or used."""


class InterventionError(CNAError):
    """An intervention file cannot be read, or does not fit the model."""


class ArchitectureError(CNAError):
    """The model's layers or down-projections are of an unknown kind."""


class SteeringError(CNAError):
    """Steering cannot be applied as asked."""


class CacheError(CNAError):
    """A response cache belongs to another model or another setting."""


class RunError(CNAError):
    """A run directory cannot be used: it is damaged, in use, of another plan, or not a run directory."""


class JudgeError(CNAError):
    """The judge cannot be loaded or reached, or gave no verdict at all."""
