"""Quotes untrusted text in a question to the judge: cut, cleaned, every line marked, between marker lines.

- Length: the first `max_chars` characters are shown; the heading outside the quotation says how many there are.
- Line ends of every kind become one kind, and **every line starts with "| "**: nothing in the text can look like a line
  of ours, be it a role marker, a closing marker or a verdict.
- Control characters, invisible characters and those that reverse the direction of writing become `[U+202E]` and the
  like. The two joiners that scripts and emoji need stay. Half a surrogate pair becomes U+FFFD.
- Special tokens of chat templates (`<|im_end|>`, `</s>`, `<start_of_turn>`, `<<SYS>>`, `[INST]`): tokenizers read these
  in plain text too, so a space goes behind every `<` that does not have one and behind the `[` of a bracketed word.
- The marker lines carry an identifier, a hash of the question that does not occur in the text.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata

_LINE_ENDS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_OPENING = re.compile(r"([<\uff1c\ufe64])(?=\S)")
_BRACKETED = re.compile(r"([\[\uff3b])(?=/?[^\W\d]\w*[\]\uff3d])")
_UNUSUAL = re.compile(r"[^\n\t -~]")
_JOINERS = {"\u200c", "\u200d"}
#: Printed by no font, though Unicode does not class them as format characters: Hangul fillers and variation selectors.
_BLANK = re.compile(r"[\u115f\u1160\u3164\uffa0\ufe00-\ufe0e\U000e0100-\U000e01ef]")


def clean(text: str) -> str:
    """The text with one kind of line end, nothing invisible and no special tokens, as the module describes."""
    text = _UNUSUAL.sub(lambda match: _visible(match.group()), _LINE_ENDS.sub("\n", text))
    return _BRACKETED.sub(r"\1 ", _OPENING.sub(r"\1 ", text))


def quote(heading: str, text: str, marker: str, max_chars: int) -> str:
    """The text as quoted data under a heading.

    Args:
        heading: what the text is, such as "RESPONSE".
        text: anything.
        marker: identifier of the marker lines, from `identifier`.
        max_chars: how many characters of the text are shown.
    """
    shown = clean(text[:max_chars])
    size = f"{len(text)} characters" if len(text) <= max_chars else f"the first {max_chars} of {len(text)} characters"
    lines = "\n".join(f"| {line}" for line in shown.split("\n"))
    return f"{heading} ({size})\n=====BEGIN {heading} {marker}=====\n{lines}\n=====END {heading} {marker}====="


def identifier(purpose: str, *parts: str) -> str:
    """Sixteen hexadecimal digits that depend on all parts and occur in none of them, cleaned or not.

    Nobody can write a text that contains it: the text would have to contain a hash of itself.
    """
    seed = json.dumps([purpose, *parts])  # ASCII, so half a surrogate pair does no harm
    taken = [text for part in parts for text in (part.lower(), clean(part).lower())]
    for attempt in range(1000):
        drawn = hashlib.sha256(f"{attempt} {seed}".encode()).hexdigest()[:16]
        if not any(drawn in text for text in taken):
            return drawn
    raise AssertionError("a thousand hashes of a text in the text itself")


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        return "\ufffd"
    hidden = category in ("Cc", "Cf") or _BLANK.match(character)
    return f"[U+{ord(character):04X}]" if hidden and character not in _JOINERS else character
