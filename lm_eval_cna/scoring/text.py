"""Normal forms of a text, which the classifiers read instead of the raw string.

A normal form drops what does not change the meaning (case, typographic quotes, Markdown marks, the width of white
space), so that each rule is written once. No torch here.
"""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032`\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2013\u2014", "-")
)
_MARKDOWN = re.compile(r"[*_#~|]+|^[ \t]*>+", re.MULTILINE)
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_SPACE = re.compile(r"\s+")


def collapse_space(text: str) -> str:
    """Replace each run of white space by one space, and strip both ends."""
    return _SPACE.sub(" ", text).strip()


def normalise(text: str) -> str:
    """The form in which refusal markers are written and looked for.

    Compatibility characters are folded (NFKC), case is dropped, typographic quotes, primes, backticks and dashes
    become their plain forms, invisible characters and Markdown marks (emphasis, headings, quotation, table bars) go,
    white space is collapsed.
    """
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text.translate(_QUOTES)))
    return collapse_space(_MARKDOWN.sub(" ", plain.translate(_QUOTES))).casefold()
