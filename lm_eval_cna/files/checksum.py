"""JSON documents that end with a hash of what stands before it, so that a damaged digit is not read as a measured one.

Standard library only. The hash finds damage and slips of an editor, not forgery: whoever changes a file on
purpose removes the entry. A document without one, made by hand or by an older version, is read as it is.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lm_eval_cna.files.json_reader import load_json

CHECKSUM = "sha256"
_OPENING, _END = f'\n "{CHECKSUM}": "', '"\n}\n'
_CHANGED = f'it is not what was written there (an edit on purpose removes its last entry, "{CHECKSUM}")'


class ChecksumError(ValueError):
    """A document is not what was written."""


def with_checksum(text: str) -> bytes:
    """A JSON object with the hash of its text as its last entry.

    Args:
        text: an object that is indented by one blank and ends with a brace on a line of its own.
    """
    body = text.rstrip().removesuffix("}").rstrip()
    body += "" if body == "{" else ","
    return f"{body}{_OPENING}{_digest(body.encode())}{_END}".encode()


def without_checksum(raw: bytes) -> tuple[Any, bool]:
    """What a JSON document holds, without its checksum, and whether it had one.

    Raises:
        BrokenSealError: it is not what was written.
        ValueError: it is no JSON, or none that `load_json` takes.
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
