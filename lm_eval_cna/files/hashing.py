"""One way to hash plain data, for every identity that ends up in a file."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def json_sha256(value: Any) -> str:
    """SHA-256 of plain data by its canonical JSON; what JSON does not know goes in as its `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
