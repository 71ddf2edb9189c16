"""JSON Lines: one JSON document on each line."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonlines

from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.json_reader import load_json

_BLANK = object()


def read_jsonl(path: Path, *, limit: int = 64 * 2**20) -> list[tuple[int, Any]]:
    """Read a JSON Lines file of unknown origin.

    Returns:
        (line number, document) pairs, numbered from 1; blank lines are left out.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than the limit.
        ValueError: `load_json` refuses a line; the message gives its number.
    """
    # Blank lines are read like the others, so that the numbers stay right.
    with jsonlines.Reader(io.BytesIO(read_whole(path, limit=limit)), loads=_load_line) as reader:
        try:
            documents = list(reader.iter(allow_none=True))
        except jsonlines.InvalidLineError as error:
            raise ValueError(f"line {error.lineno} is not JSON: {error.__cause__}") from error
    return [(number, document) for number, document in enumerate(documents, start=1) if document is not _BLANK]


def _load_line(line: str | bytes) -> Any:
    raw = line.encode() if isinstance(line, str) else line
    return load_json(raw) if raw.strip() else _BLANK


def jsonl_text(documents: Iterable[Any]) -> str:
    """The text of a JSON Lines file; non-ASCII letters are not escaped."""
    text = io.StringIO()
    with jsonlines.Writer(text) as writer:
        writer.write_all(documents)
    return text.getvalue()
