r"""Makes untrusted text safe in HTML, Markdown, LaTeX, figures, CSV and a script tag.

Model output, prompts and names of tasks, models and runs come from files and may hold anything. In HTML, Jinja escapes
them; this module covers the rest.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_MARKDOWN = "\\`*_{}[]<>#|&~$!"
#: Where GitHub would make a link of an address or mention a user; a zero-width space goes there.
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=@)(?=\w)", re.IGNORECASE)
#: Characters that would begin a list or make a rule at the start of a list item.
_BLOCK = re.compile(r"^(\d*)(?=[-+.)](?:[ -]|$))")
#: Characters with which a spreadsheet begins a formula or a command. Full-width forms count in some locales, and where
#: a semicolon separates cells, the text after it begins a new one.
_FORMULA = re.compile(r"(^|;)(?=[ \"']*[=+\-@|%\uff1d\uff0b\uff0d\uff20])")
#: Control characters (without tab and line feed), lone surrogates and noncharacters, which HTML does not allow, and
#: characters that reverse the direction of text.
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
    """One line without control or bidirectional override characters, for figures, Markdown and LaTeX."""
    shown = "".join(" " if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in str(text))
    return " ".join(shown.split())


def visible(text: str) -> str:
    """Text on a page; characters that cannot be shown or would reverse text become U+FFFD."""
    return _UNSHOWN.sub("\ufffd", text)


def markdown(text: str) -> str:
    """Text in Markdown prose or tables, without markup, HTML, links, mentions or new columns."""
    return "".join(
        letter if letter not in _MARKDOWN else f"&#{ord(letter)};" if letter in "<>&|" else f"\\{letter}"
        for letter in _LINKED.sub("\u200b", plain(text))
    )


def item(text: str) -> str:
    """Text as one item of a Markdown list; it cannot begin a list or a rule of its own."""
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
    """Text in a LaTeX table, without commands, comments, new columns or rows."""
    return "".join(_LATEX.get(letter, letter) for letter in plain(text))


def csv_cell(text: str) -> str:
    """Text in a CSV cell; an apostrophe before formulas and commands keeps a spreadsheet from running them."""
    return _FORMULA.sub(r"\1'", plain(text))


def script_json(value: Any) -> str:
    """JSON for a script element, in which nothing can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(_JSON.get(letter, letter) for letter in text)


def writable(text: str) -> str:
    """Text that UTF-8 can encode; a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def slug(name: str, taken: set[str]) -> str:
    """A file name made of a name, different from those in `taken`, to which it is added."""
    base = re.sub(r"[^A-Za-z0-9.-]+", "-", plain(name)).strip("-.")[:80] or "unnamed"
    found, number = base, 1
    while found.lower() in taken:
        number += 1
        found = f"{base}-{number}"
    taken.add(found.lower())
    return found
