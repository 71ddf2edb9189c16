"""JSON as plain data, from whoever wrote it. Standard library only.

`json.loads` makes no objects, but takes what breaks the next function that looks at it: values nested so deeply that
walking over them ends the stack (how deep differs between versions of Python), and integers that are no float.
"""

from __future__ import annotations

import json
import re
from typing import Any

#: How deep a document may nest. A run's files nest about ten deep.
DEEPEST = 100
#: Digits of an integer; a float takes 308.
MOST_DIGITS = 300
# With an end that may be missing, so that no text is looked at twice.
_STRING = re.compile(rb'"[^"]*+"?')
_OTHERS = bytes(set(range(256)) - set(b'[]{}"'))
_ALIKE = bytes.maketrans(b"{}", b"[]")
_DEEP = b"[" * (DEEPEST + 1)


def load_json(raw: bytes) -> Any:
    """Read one JSON document.

    Raises:
        ValueError: it is not JSON in UTF-8, nests too deeply, or holds an integer that is too long.
    """
    if _too_deep(raw):
        raise ValueError(f"nested more than {DEEPEST} deep")
    text = raw.decode("utf-8-sig")
    try:
        return json.loads(text, parse_int=_short_int)
    except RecursionError:  # of what is no JSON: brackets that nothing closes
        raise ValueError("nested too deeply") from None


def whole_text(text: str) -> str:
    """Refuse half a surrogate pair, which an escape in JSON can write, and nobody can hash, tokenize or print.

    Raises:
        ValueError: there is one in it.
    """
    text.encode()
    return text


def _too_deep(raw: bytes) -> bool:
    """Take away the innermost brackets, as often as is allowed; what is left is too deep, or no JSON."""
    if raw.count(b"[") + raw.count(b"{") <= DEEPEST:
        return False
    # Two quotes side by side change nothing about what is inside of a text and what is not.
    left = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_ALIKE, _OTHERS).replace(b'""', b"")
    brackets = _STRING.sub(b"", left)
    for _ in range(DEEPEST):
        if _DEEP in brackets:
            return True
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            return False
        brackets = fewer
    return bool(brackets)


def _short_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; allowed: up to {MOST_DIGITS}")
    return int(digits)
