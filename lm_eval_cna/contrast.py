"""Contrast sets: prompts that show a behaviour and prompts that do not.

Floor 1. A set is JSON Lines (DESIGN section 6) or a YAML file that names public data sets (`contrast_sources`). It is
whole or it is an error: a set with a line missing finds another circuit without anybody noticing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lm_eval_cna.errors import ContrastError
from lm_eval_cna.files.atomic import is_file, read_whole
from lm_eval_cna.files.json_reader import load_json, whole_text
from lm_eval_cna.resources import contrasts_dir, packaged_prompts

_MAX_BYTES = 64 * 2**20
_SUFFIXES = (".jsonl", ".yaml", ".yml")


@dataclass(frozen=True)
class ContrastSet:
    """Prompts of one behaviour.

    Attributes:
        name: what the set is called in intervention files.
        positive: prompts that show the behaviour.
        negative: prompts that do not.
        source: where it was read from.
        leakage: what is known of prompts shared with evaluation sets, or None where nobody has looked.

    Raises:
        ContrastError: a class is empty, a prompt is blank, given twice, or in both classes.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    source: str = "given in code"
    leakage: str | None = None

    def __post_init__(self) -> None:
        for label, prompts in (("positive", self.positive), ("negative", self.negative)):
            if not prompts:
                raise ContrastError(f"contrast set {self.name} has no {label} prompt", do="give both classes prompts")
            if any(not prompt.strip() for prompt in prompts):
                raise ContrastError(f"contrast set {self.name} has a blank {label} prompt")
            twice = [key for key, n in Counter(map(_spaced, prompts)).items() if n > 1]
            if twice:
                raise ContrastError(f"contrast set {self.name} has a {label} prompt more than once", got=twice[0])
        both = set(map(_spaced, self.positive)) & set(map(_spaced, self.negative))
        if both:
            raise ContrastError(f"contrast set {self.name} has a prompt in both classes", got=min(both))

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, positive first."""
        return self.positive + self.negative

    @property
    def sha256(self) -> str:
        """Hash of the prompts of each class; name, source and order do not enter."""
        return prompts_sha256(self.positive, self.negative)


def _spaced(prompt: str) -> str:
    return " ".join(prompt.split())


def prompts_sha256(*classes: Sequence[str]) -> str:
    """Hash of classes of prompts, whatever their order within a class."""
    canonical = json.dumps([sorted(prompts) for prompts in classes], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class _Line(BaseModel):
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


def load_contrast(name_or_path: str | Path) -> ContrastSet:
    """Load a packaged contrast set by name, or one from a file.

    Args:
        name_or_path: `refusal`, `refusal-8`, `organism`, `capitals` or `sva` (contrasts/README.md describes them); or a
            path that ends in .jsonl, .yaml or .yml. YAML sets name public data sets, which are fetched with `datasets`.

    Raises:
        ContrastError: there is no such set, or it is not whole.
    """
    path = find_contrast(name_or_path)
    if path.suffix != ".jsonl":
        from lm_eval_cna.contrast_sources import fetch

        return fetch(path)
    header, lines = _read_lines(path)
    prompts = {label: tuple(line.prompt for line in lines if line.label == label) for label in ("positive", "negative")}
    name = header.name if header else path.stem
    return ContrastSet(name, **prompts, source=str(path), leakage=header.leakage if header else None)


def load_universal_prompts() -> tuple[str, ...]:
    """The diverse prompts of the universal filter, packaged with the project."""
    return packaged_prompts(contrasts_dir() / "universal.jsonl")


def find_contrast(name_or_path: str | Path) -> Path:
    """The file of a contrast set, packaged or given; it is not read.

    Raises:
        ContrastError: there is no such set.
    """
    path = Path(name_or_path)
    if path.suffix in _SUFFIXES:
        if not is_file(path):
            raise ContrastError("no such contrast set", got=str(path), allowed=_packaged())
        return path
    for suffix in _SUFFIXES:
        packaged = contrasts_dir() / f"{name_or_path}{suffix}"
        if is_file(packaged) and packaged.parent == contrasts_dir() and name_or_path != "universal":
            return packaged
    raise ContrastError("no such contrast set", got=str(name_or_path), allowed=_packaged())


def _packaged() -> str:
    names = {path.stem for path in contrasts_dir().iterdir() if path.suffix in _SUFFIXES} - {"universal"}
    return "a .jsonl or .yaml file, or one of " + ", ".join(sorted(names))


def _read_lines(path: Path) -> tuple[_Header | None, list[_Line]]:
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
                lines.append(_Line.model_validate(document))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ContrastError(
                f"{path}, line {number}: {where}: {first['msg']}",
                got=first["input"],
                allowed='{"label": "positive" or "negative", "prompt": text}',
            ) from error
        except ValueError as error:
            raise ContrastError(f"{path}, line {number}, is not JSON: {error}", do="was the file cut short?") from error
    return header, lines
