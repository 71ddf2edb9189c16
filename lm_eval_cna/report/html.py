"""The HTML pages: files that open from disk and whose policy forbids loading anything.

Jinja escapes every text. Samples are JSON in a data block, which the script shows as text and never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from lm_eval_cna import __version__
from lm_eval_cna.report.escape import script_json, visible, writable
from lm_eval_cna.report.sections import Contents
from lm_eval_cna.report.svg import drawing


def page(found: Contents, samples: dict[str, Any] | None) -> str:
    """The report as HTML; without `samples`, the data of the sample browser, the page has no sample browser."""
    return render(
        "report.html.jinja",
        contents=found,
        samples=None if samples is None else Markup(script_json(samples)),  # escaped for a data block
        groups=() if samples is None else samples["groups"],
        left_out=0 if samples is None else samples["left_out"],
    )


def render(template: str, **values: Any) -> str:
    """Fill a template of `report/templates`; every text is escaped, and a missing name is an error."""
    templates = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # Markup is our own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"drawing": drawing, "paragraphs": _paragraphs}
    style, script = _source("report.css"), _source("report.js")
    text = templates.get_template(template).render(
        **values,
        style=Markup(style),  # files of this package
        script=Markup(script),
        policy=_policy(style, script),
        version=__version__,
    )
    return writable(text)


def _source(name: str) -> str:
    return files("lm_eval_cna.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that allows this style and this script by their hashes, and no request.

    `img-src data:` is for the empty icon, without which browsers request one. Trusted types forbid our own script, too,
    to turn text into markup or code.
    """
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _paragraphs(text: str) -> Markup:
    """A preface as HTML; only paragraphs and code spans of Markdown are supported."""
    blocks = [str(escape(block)) for block in re.split(r"\n\s*\n", text.strip()) if block]
    coded = (re.sub("`([^`]*)`", r"<code>\1</code>", block) for block in blocks)
    return Markup("".join(f"<p>{block}</p>" for block in coded))
