"""Whether a text is broken: the paper's n-gram quality, a stricter one, and degeneracy, all in linear time.

`quality` misses loops without spaces, short texts and the empty text; `quality_strict` and `is_degenerate` see them.
Short texts such as "." are not degenerate. Mistaken for loops: a refrain sung four times at the end, a number of one
repeated digit, a final line of dashes. Not detected: fluent nonsense in real words. No torch here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence
from functools import lru_cache

from lm_eval_cna.scoring.text import collapse_space

WORD_GRAM = 4
CHARACTER_GRAM = 8
DEGENERATE_BELOW = 0.5

LOOP_CHARACTERS = 24
"""A loop of fewer characters than this at the end of a longer text is emphasis ("Nooooo!!!"), not broken text."""
LOOP_TURNS = 4
SENTENCE_CHARACTERS = 40
SENTENCE_TURNS = 3

_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+")
_VOWEL = re.compile(r"[aeiouy]|[^\x00-\x7f]")


def _unique_share(items: Sequence[Hashable]) -> float:
    return len(set(items)) / len(items) if items else 1.0


def quality(text: str) -> float:
    """The paper's quality: unique word 4-grams over all word 4-grams, words by `split()`, in (0, 1].

    A text under four words, the empty one included, has 1.0, as published.
    """
    words = text.split()
    return _unique_share([tuple(words[i : i + WORD_GRAM]) for i in range(len(words) - WORD_GRAM + 1)])


def quality_strict(text: str) -> float:
    """The lower of `quality` and the same share over character 8-grams; 0 for an empty text, in [0, 1].

    A run of white space counts as one character, so that indented code is not held against itself. The share of
    unique character 8-grams falls with length in any language (English prose: 0.97 at 700 characters), so
    compare texts of one length limit only.
    """
    plain = collapse_space(text)
    if not plain:
        return 0.0
    characters = [plain[i : i + CHARACTER_GRAM] for i in range(len(plain) - CHARACTER_GRAM + 1)]
    return min(quality(text), _unique_share(characters))


@lru_cache(maxsize=4096)  # each response is checked twice, and steered responses often equal the baseline's
def is_degenerate(text: str) -> bool:
    """Whether the text is broken: empty, too repetitive, ending in a loop, or gibberish."""
    plain = collapse_space(text).casefold()
    if not plain or quality_strict(text) < DEGENERATE_BELOW or ends_in_loop(plain):
        return True
    return _is_symbols(plain) or _is_consonants(plain) or _is_script_soup(plain)


def ends_in_loop(text: str) -> bool:
    """Whether the text ends by repeating one unit: a character, a token, a sentence, or a numbered sentence.

    A loop is a unit repeated at least four times over at least 24 characters, or at least three times if the unit has
    40 characters or more, or a whole text of more than four turns ("no no no no no", but 55555 is a number). The last
    turn may be cut short. Numbers are also masked, so that "1. Be kind. 2. Be kind." is seen as a loop, but then the
    unit must hold three words (counting to ten is none) and turn five times.
    """
    if _has_loop(text, LOOP_TURNS, unit=1):
        return True
    masked = _DIGITS.sub("0", text)
    return masked != text and _has_loop(masked, LOOP_TURNS + 1, unit=12, words=3)


def _has_loop(text: str, turns: int, *, unit: int, words: int = 0) -> bool:
    backwards = text[::-1]
    for period, length in enumerate(_matches_with_start(backwards)):
        if period < unit:
            continue
        covered = length + period
        needed = SENTENCE_TURNS if period >= SENTENCE_CHARACTERS and not words else turns
        long_enough = covered >= max(needed * period, LOOP_CHARACTERS)
        whole = not words and covered == len(text) > turns * period and not text[-period:].isdigit()
        if (long_enough or whole) and len(_WORD.findall(text[-period:])) >= words:
            return True
    return False


def _matches_with_start(text: str) -> list[int]:
    """For each i, how many characters from i on equal the text's own start (the Z function, linear time)."""
    size = len(text)
    matches = [0] * size
    left = right = 0
    for i in range(1, size):
        length = min(right - i, matches[i - left]) if i < right else 0
        while i + length < size and text[length] == text[i + length]:
            length += 1
        matches[i] = length
        if i + length > right:
            left, right = i, i + length
    return matches


def _is_symbols(text: str) -> bool:
    """Broken characters in quantity, or a long text of punctuation without a letter, digit or pictogram."""
    kinds = [unicodedata.category(c) for c in text if c != " "]
    broken = sum(kind in {"Co", "Cn", "Cc", "Cs"} for kind in kinds) + text.count("\ufffd")
    speaking = sum(kind[0] in "LNM" or kind == "So" for kind in kinds)
    return broken * 10 > len(kinds) or (len(kinds) >= 20 and speaking * 10 < len(kinds))


def _is_consonants(text: str) -> bool:
    """Latin letters struck at random: most of at least eight longer words have no vowel."""
    words = [word for word in _WORD.findall(text) if len(word) >= 5]
    return len(words) >= 8 and sum(not _VOWEL.search(word) for word in words) * 2 > len(words)


def _is_script_soup(text: str) -> bool:
    """Words that change script inside, in quantity, other than Latin names inside East Asian text."""
    words = _WORD.findall(text)
    mixed = sum(len({_script(c) for c in word} - {""}) > 1 for word in words)
    return mixed >= 5 and mixed * 5 > len(words)


_SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "FULLWIDTH", "HALFWIDTH")


@lru_cache(maxsize=8192)
def _script(character: str) -> str:
    """The script a letter's name begins with; "" for scripts that are written together with others."""
    if not character.isalpha():
        return ""
    script = unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]
    return "" if script in _SPACELESS or script in {"MICRO", "MODIFIER", "MATHEMATICAL"} else script
