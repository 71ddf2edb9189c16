"""JSON from elsewhere: plain data within bounds, or a ValueError."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lm_eval_cna.files.json_reader import MOST_DIGITS, load_json

DEEP = 200  # levels of nesting that pydantic's parser takes


@pytest.mark.parametrize(
    ("raw", "document"),
    [
        (b"\xef\xbb\xbf[1]", [1]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'"' + b"9" * 500 + b'\\""', "9" * 500 + '"'),
        (b"-" + b"9" * MOST_DIGITS, 1 - 10**MOST_DIGITS),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"' + b"[" * 500 + b'"', "[" * 500),
    ],
    ids=["byte order mark", "one key twice", "digits in a text", "integer", "pair", "brackets in a text"],
)
def test_json_within_its_bounds(raw: bytes, document: Any) -> None:
    assert load_json(raw) == document


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[" * (DEEP + 2) + b"]" * (DEEP + 2), "nested too deeply"),
        (b'{"a": [-' + b"9" * (MOST_DIGITS + 1) + b"]}", f"an integer of .*up to {MOST_DIGITS}"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "unicode"),
        (b'"' + b'\\"' * 300_000, "EOF"),
        (b"{} x", "trailing"),
        (b"", "EOF"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_anything_else_is_an_error(raw: bytes, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        load_json(raw)
    assert time.process_time() - started < 2
