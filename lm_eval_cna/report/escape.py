r"""Text that nobody vouches for, made safe for HTML, Markdown, LaTeX, figures, CSV and a script tag.

Model output, prompts, names of tasks, models and runs: all of it comes from files. HTML is Jinja's autoescape, with
every attribute in double quotes; what it does not cover is here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_MARKDOWN = "\\`*_{}[]<>#|&~$!"
#: Where GitHub would make a link of a bare address, or call whoever has the name; a space without width goes there.
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=@)(?=\w)", re.IGNORECASE)
#: What begins a list or is a rule, at the start of a list's item.
_BLOCK = re.compile(r"^(\d*)(?=[-+.)](?:[ -]|$))")
#: With these a spreadsheet takes a text for a formula, or a line that begins with one for a command. The wide forms
#: count in some locales, and where a semicolon ends a cell, what follows one begins the next.
_FORMULA = re.compile(r"(^|;)(?=[ \"']*[=+\-@|%\uff1d\uff0b\uff0d\uff20])")
#: Controls (but tab and line feed), lone surrogates and noncharacters, which HTML has no place for, and what turns the
#: direction of the text after it.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # After the \\ that ends a row, these two would be its options.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    # Quotes that TeX would join with their neighbours or turn round.
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "−": "$-$",
}
_JSON = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}


def plain(text: str) -> str:
    """One line without control or bidirectional override characters, as figures, Markdown and LaTeX take it."""
    shown = "".join(" " if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in str(text))
    return " ".join(shown.split())


def visible(text: str) -> str:
    """Text on a page: what cannot be shown, or would turn the text after it round, is U+FFFD."""
    return _UNSHOWN.sub("\ufffd", text)


def markdown(text: str) -> str:
    """Text in prose or in a table: no markup, no HTML, no link, no mention, no new column."""
    return "".join(
        letter if letter not in _MARKDOWN else f"&#{ord(letter)};" if letter in "<>&|" else f"\\{letter}"
        for letter in _LINKED.sub("\u200b", plain(text))
    )


def item(text: str) -> str:
    """Text as one item of a Markdown list, which begins no list and is no rule of its own."""
    return "- " + _BLOCK.sub(r"\1\\", markdown(text))


def code(text: str) -> str:
    """Text inside a Markdown code span, the back-ticks around it included."""
    return f"`{plain(text).replace('`', chr(39)) or ' '}`"


def fence(text: str) -> str:
    """Text as a Markdown code block, with a fence longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}\n{plain(text)}\n{ticks}"


def latex(text: str) -> str:
    """Text in a LaTeX table: no command, no comment, no new column or row."""
    return "".join(_LATEX.get(letter, letter) for letter in plain(text))


def csv_cell(text: str) -> str:
    """Text in a cell of a CSV file that a spreadsheet shows as it is: an apostrophe stands before what it would run."""
    return _FORMULA.sub(r"\1'", plain(text))


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(_JSON.get(letter, letter) for letter in text)


def writable(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def slug(name: str, taken: set[str]) -> str:
    """A file name out of a name, unlike those taken; it joins them."""
    base = re.sub(r"[^A-Za-z0-9.-]+", "-", plain(name)).strip("-.")[:80] or "unnamed"
    found, number = base, 1
    while found.lower() in taken:
        number += 1
        found = f"{base}-{number}"
    taken.add(found.lower())
    return found
