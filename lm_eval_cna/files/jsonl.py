"""JSON Lines: one JSON document a line.

`read_jsonl(path, limit=BYTES)` gives [(line number, document), ...]; `jsonl_text(documents)` gives the text of a file.
"""

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
    """Read a JSON Lines file from whoever wrote it.

    Args:
        path: the file.
        limit: the most bytes that are read.

    Returns:
        The number of each line, counted from 1, and its document; blank lines are left out.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than the limit.
        ValueError: a line is not JSON that `load_json` takes; the message names the line.
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
    """The text of a JSON Lines file, non-ASCII letters as they are."""
    text = io.StringIO()
    with jsonlines.Writer(text) as writer:
        writer.write_all(documents)
    return text.getvalue()
