"""JSON documents whose last entry is a checksum of the text before it, so that damage is noticed.

The checksum finds damage and accidental edits, not forgery: anyone who changes a file on purpose can remove the
entry. A document without a checksum, made by hand or by an older version, is read without this check.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lm_eval_cna.files.json_reader import load_json

CHECKSUM = "sha256"
_OPENING, _END = f'\n "{CHECKSUM}": "', '"\n}\n'
_CHANGED = f'it is not what was written there (an edit on purpose removes its last entry, "{CHECKSUM}")'


class ChecksumError(ValueError):
    """A document has changed since it was written."""


def with_checksum(text: str) -> bytes:
    """Add a checksum to the text of a JSON object that is indented by one blank."""
    body = text.rstrip().removesuffix("}").rstrip()
    body += "" if body == "{" else ","
    return f"{body}{_OPENING}{_digest(body.encode())}{_END}".encode()


def without_checksum(raw: bytes) -> tuple[Any, bool]:
    """Read a JSON document and verify its checksum, if it has one.

    Returns:
        The document without its checksum, and whether it had one.

    Raises:
        ChecksumError: the document has changed since it was written.
        ValueError: `load_json` refuses it.
    """
    document = load_json(raw)
    if not isinstance(document, dict) or CHECKSUM not in document:
        return document, False
    digest = document.pop(CHECKSUM)
    body, _, end = raw.rpartition(_OPENING.encode())
    if end != f"{digest}{_END}".encode() or digest != _digest(body):
        raise ChecksumError(_CHANGED)
    return document, True


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
