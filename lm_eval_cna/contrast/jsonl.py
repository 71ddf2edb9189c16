"""Contrast sets as JSON Lines: a prompt and its label a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lm_eval_cna.errors import ContrastError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.json_reader import load_json, whole_text
from lm_eval_cna.files.records import first_error

_MAX_BYTES = 64 * 2**20


class _PromptLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    label: Literal["positive", "negative"]
    prompt: Annotated[str, Field(min_length=1), AfterValidator(whole_text)]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    description: str = ""
    license: str = ""
    source: str = ""
    leakage: str | None = None


def read_lines(path: Path) -> tuple[_Header | None, list[_PromptLine]]:
    """The header, if the first line is one (it has no prompt), and the other lines."""
    try:
        text = read_whole(path, limit=_MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContrastError(f"cannot read {path}: {error}") from error
    header, lines = None, []
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for position, (number, line) in enumerate(numbered):
        try:
            document = load_json(line.encode())
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
        except ValueError as error:
            raise ContrastError(f"{path}, line {number}, is not JSON: {error}", do="was the file cut short?") from error
    return header, lines
