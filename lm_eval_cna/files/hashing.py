"""The hash of plain data, used for every identity that is written into a file."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def json_sha256(value: Any) -> str:
    """SHA-256 of the JSON text of plain data, with sorted keys; other objects are hashed as their `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
