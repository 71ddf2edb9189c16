"""Read JSON of unknown origin as plain data.

`pydantic_core.from_json` refuses more than 200 levels of nesting, which would overflow the stack of later functions,
and half of a surrogate pair, which cannot be hashed, tokenized or printed. It accepts integers of thousands of
digits, which `float` does not, so these are refused here.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from pydantic_core import from_json

#: Most digits of an integer; a float holds 308.
MOST_DIGITS = 300
_LONG = re.compile(rb"[0-9]{%d}" % (MOST_DIGITS + 1))


def load_json(raw: bytes) -> Any:
    """Read one JSON document.

    Raises:
        ValueError: it is not JSON in UTF-8, nests too deeply, or holds half of a surrogate pair or an integer that is
            too long.

    Example:
        >>> load_json(b'{"neurons": [1, 2]}')
        {'neurons': [1, 2]}
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        document = from_json(raw)
    except ValueError as error:
        message = str(error).replace("recursion limit exceeded", "nested too deeply")
        raise ValueError(f"half of a surrogate pair: {message}" if "hex escape" in message else message) from None
    if _LONG.search(raw):  # allowed in text and in floats; this parser finds out whether it is an integer
        json.loads(raw, parse_int=_short_int)
    return document


def _short_int(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; allowed: up to {MOST_DIGITS}")
    return int(digits)
