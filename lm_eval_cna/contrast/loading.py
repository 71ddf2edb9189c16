"""Load contrast sets, packaged or given: JSON Lines, or YAML that names public data sets (`sources`).

A damaged set is an error: with a line missing it would give another circuit, and nobody would notice.
"""

from __future__ import annotations

from pathlib import Path

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.jsonl import read_lines
from lm_eval_cna.contrast.sources import fetch
from lm_eval_cna.errors import ContrastError
from lm_eval_cna.files.atomic import is_file
from lm_eval_cna.resources import contrasts_dir, packaged_prompts

_SUFFIXES = (".jsonl", ".yaml", ".yml")


def load_contrast(name_or_path: str | Path) -> ContrastSet:
    """Load a packaged contrast set by name, or one from a file.

    Args:
        name_or_path: `refusal`, `refusal-8`, `organism`, `capitals` or `sva` (contrasts/README.md describes them); or a
            path that ends in .jsonl, .yaml or .yml. YAML sets name public data sets, which are fetched with `datasets`.

    Raises:
        ContrastError: there is no such set, or it is damaged or cannot be fetched.

    Example:
        >>> from lm_eval_cna import load_contrast
        >>> contrast = load_contrast("refusal-8")
        >>> len(contrast.positive), len(contrast.negative)
        (8, 8)
    """
    path = find_contrast(name_or_path)
    if path.suffix != ".jsonl":
        return fetch(path)
    header, lines = read_lines(path)
    prompts = {label: tuple(line.prompt for line in lines if line.label == label) for label in ("positive", "negative")}
    name = header.name if header else path.stem
    return ContrastSet(name, **prompts, source=str(path), leakage=header.leakage if header else None)


def load_universal_prompts() -> tuple[str, ...]:
    """The packaged prompts of the universal filter, which are of many kinds."""
    return packaged_prompts(contrasts_dir() / "universal.jsonl")


def find_contrast(name_or_path: str | Path) -> Path:
    """Find the file of a contrast set, packaged or given, without reading it.

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
