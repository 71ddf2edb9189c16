"""The page: one file that opens from disk, with nothing to load and a policy that lets nothing be loaded.

Jinja escapes every text. The script and the style are our own files, allowed by their hashes; samples are JSON in a
data block, which the script shows as text and never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from lm_eval_cna import __version__
from lm_eval_cna.report.charts import Panel
from lm_eval_cna.report.contents import Contents
from lm_eval_cna.report.escape import script_json, writable
from lm_eval_cna.report.svg import Drawing, drawing


def page(found: Contents, samples: dict[str, Any] | None) -> str:
    """The report as HTML.

    Args:
        found: what it says.
        samples: data of the sample browser; None leaves it out.
    """
    style, script = _source("report.css"), _source("report.js")
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"drawings": _drawings, "paragraphs": _paragraphs}
    text = environment.get_template("report.html.jinja").render(
        contents=found,
        samples=None if samples is None else Markup(script_json(samples)),  # escaped for a data block
        groups=() if samples is None else samples["groups"],
        left_out=0 if samples is None else samples["left_out"],
        style=Markup(style),  # files of this package
        script=Markup(script),
        policy=(
            f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        version=__version__,
    )
    return writable(text)


def _source(name: str) -> str:
    return files("lm_eval_cna.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _drawings(panels: Sequence[Panel]) -> list[Drawing]:
    return [drawing(panel) for panel in panels]


def _paragraphs(text: str) -> Markup:
    """Our own prefaces as HTML: paragraphs and code spans, nothing else of Markdown."""
    blocks = [str(escape(block)) for block in re.split(r"\n\s*\n", text.strip()) if block]
    coded = (re.sub("`([^`]*)`", r"<code>\1</code>", block) for block in blocks)
    return Markup("".join(f"<p>{block}</p>" for block in coded))
