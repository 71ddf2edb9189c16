r"""Text that nobody vouches for, made safe for Markdown, LaTeX, figures and a script tag.

Model output, prompts, names of tasks, models and runs: all of it comes from files. HTML is Jinja's autoescape, with
every attribute in double quotes; what it does not cover is here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_MARKDOWN = "\\`*_{}[]<>#|&~$!"
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


def markdown(text: str) -> str:
    """Text in prose or in a table: no markup, no HTML, no new column."""
    return "".join(
        letter if letter not in _MARKDOWN else f"&#{ord(letter)};" if letter in "<>&|" else f"\\{letter}"
        for letter in plain(text)
    )


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
