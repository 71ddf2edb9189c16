"""Contrast sets as JSON Lines: on each line a prompt and its label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from lm_eval_cna.errors import ContrastError
from lm_eval_cna.files.jsonl import read_jsonl
from lm_eval_cna.files.records import Record, first_error


class _PromptLine(Record):
    label: Literal["positive", "negative"]
    prompt: Annotated[str, Field(min_length=1)]


class _Header(Record):
    name: str
    description: str = ""
    license: str = ""
    source: str = ""
    leakage: str | None = None


def read_lines(path: Path) -> tuple[_Header | None, list[_PromptLine]]:
    """Read the header, which is the first line if that has no prompt, and the lines with prompts.

    Raises:
        ContrastError: the file cannot be read, or a line is not as described.
    """
    try:
        documents = read_jsonl(path)
    except OSError as error:
        raise ContrastError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise ContrastError(f"cannot read {path}: {error}", do="was the file cut short?") from error
    header, lines = None, []
    for position, (number, document) in enumerate(documents):
        try:
            if position == 0 and isinstance(document, dict) and "prompt" not in document:
                header = _Header.model_validate(document)
            else:
                lines.append(_PromptLine.model_validate(document))
        except ValidationError as error:
            raise ContrastError(
                f"{path}, line {number}: {(first := first_error(error))}",
                got=first.got,
                allowed='{"label": "positive" or "negative", "prompt": text}',
            ) from error
    return header, lines
