"""Paths of the data that the package comes with: tasks, contrast sets, circuits and published figures.

In a checkout or an editable install the folders are at the repository's root; in a wheel they are in
``lm_eval_cna/_resources``. No other module knows this.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lm_eval_cna.errors import ContrastError
from lm_eval_cna.files.jsonl import read_jsonl

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    for root in (_PACKAGE / "_resources", _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"no folder {name!r} beside {_PACKAGE}; reinstall lm-eval-cna")


def tasks_dir() -> Path:
    """The folder of lm-eval task definitions."""
    return _folder("tasks")


def contrasts_dir() -> Path:
    """The folder of packaged contrast sets and of the universal filter's prompts."""
    return _folder("contrasts")


def packaged_prompts(path: Path) -> tuple[str, ...]:
    """Read the prompts of a packaged JSON Lines file, whose lines have a `prompt`, in the file's order.

    Raises:
        ContrastError: the file is missing or damaged.
    """
    try:
        return tuple(str(line["prompt"]) for _, line in read_jsonl(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"cannot read the packaged prompts in {path}: {error}"
        raise ContrastError(reason, do="reinstall lm-eval-cna") from error


def circuits_dir() -> Path:
    """The folder of packaged intervention files, with one sub-folder for each model."""
    return _folder("circuits")


def published_dir() -> Path:
    """The folder of the figures that the paper published, as JSON Lines."""
    return _folder("results/published")


@cache
def harmless_prompts() -> tuple[str, ...]:
    """Our own harmless prompts that ask for long answers; on these the damage done by steering is measured.

    The task `long_form_quality` and the measure `harmless_kl` use them. They are in no contrast set and not among the
    universal filter's prompts, so no intervention was found on them.
    """
    return packaged_prompts(tasks_dir() / "long_form" / "harmless.jsonl")
