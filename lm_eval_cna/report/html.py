"""The page: one file that opens from disk, with nothing to load and a policy that lets nothing be loaded.

Jinja escapes every text. The script and the style are our own files, allowed by their hashes; samples are JSON in a
data block, which the script shows as text and never as markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from lm_eval_cna import __version__
from lm_eval_cna.report.charts import Panel
from lm_eval_cna.report.escape import script_json, writable
from lm_eval_cna.report.inline import environment, policy, source
from lm_eval_cna.report.sections import Contents
from lm_eval_cna.report.svg import Drawing, drawing


def page(found: Contents, samples: dict[str, Any] | None) -> str:
    """The report as HTML.

    Args:
        found: what it says.
        samples: data of the sample browser; None leaves it out.
    """
    style, script = source("report.css"), source("report.js")
    templates = environment()
    templates.filters |= {"drawings": _drawings, "paragraphs": _paragraphs}
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


def _drawings(panels: Sequence[Panel]) -> list[Drawing]:
    return [drawing(panel) for panel in panels]


def _paragraphs(text: str) -> Markup:
    """Our own prefaces as HTML: paragraphs and code spans, nothing else of Markdown."""
    blocks = [str(escape(block)) for block in re.split(r"\n\s*\n", text.strip()) if block]
    coded = (re.sub("`([^`]*)`", r"<code>\1</code>", block) for block in blocks)
    return Markup("".join(f"<p>{block}</p>" for block in coded))
