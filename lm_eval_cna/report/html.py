"""The HTML page: one file that opens from disk and whose policy forbids loading anything.

Jinja escapes every text. Samples are JSON in a data block, which the script shows as text and never as markup.
"""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from lm_eval_cna import __version__
from lm_eval_cna.report.escape import script_json, writable
from lm_eval_cna.report.inline import environment, policy, source
from lm_eval_cna.report.sections import Contents
from lm_eval_cna.report.svg import drawing


def page(found: Contents, samples: dict[str, Any] | None) -> str:
    """The report as HTML; without `samples`, the data of the sample browser, the page has no sample browser."""
    style, script = source("report.css"), source("report.js")
    templates = environment()
    templates.filters |= {"drawing": drawing, "paragraphs": _paragraphs}
    text = templates.get_template("report.html.jinja").render(
        contents=found,
        samples=None if samples is None else Markup(script_json(samples)),  # escaped for a data block
        groups=() if samples is None else samples["groups"],
        left_out=0 if samples is None else samples["left_out"],
        style=Markup(style),  # files of this package
        script=Markup(script),
        policy=policy(style, script),
        version=__version__,
    )
    return writable(text)


def _paragraphs(text: str) -> Markup:
    """A preface as HTML; only paragraphs and code spans of Markdown are supported."""
    blocks = [str(escape(block)) for block in re.split(r"\n\s*\n", text.strip()) if block]
    coded = (re.sub("`([^`]*)`", r"<code>\1</code>", block) for block in blocks)
    return Markup("".join(f"<p>{block}</p>" for block in coded))
