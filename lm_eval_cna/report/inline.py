"""Style, script and content security policy of the HTML pages."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from lm_eval_cna.report.escape import visible


def source(name: str) -> str:
    """A file of `report/templates`."""
    return files("lm_eval_cna.report").joinpath("templates", name).read_text(encoding="utf-8")


def environment() -> Environment:
    """The Jinja environment of the pages: it escapes every text, and a missing name is an error."""
    return Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # Markup is our own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def policy(style: str, script: str) -> str:
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
