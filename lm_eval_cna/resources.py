"""Where the files that travel with the package are: tasks, contrast sets, circuits and published figures.

In a checkout or an editable install they stand at the repository's root; a wheel carries them
under ``lm_eval_cna/_resources``. Nothing else in the project knows either place.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from lm_eval_cna.errors import ContrastError

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    for root in (_PACKAGE / "_resources", _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"the installation is incomplete: no folder {name!r} beside {_PACKAGE}; reinstall lm-eval-cna"
    )


def tasks_dir() -> Path:
    """The folder of lm-eval task definitions."""
    return _folder("tasks")


def contrasts_dir() -> Path:
    """The folder of packaged contrast sets and of the universal filter's prompts."""
    return _folder("contrasts")


def packaged_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a packaged file, JSON Lines with `prompt`, in its order.

    Raises:
        ContrastError: the file is missing or damaged.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(str(line["prompt"]) for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContrastError(
            f"cannot read the packaged prompts in {path}: {error}", do="reinstall lm-eval-cna"
        ) from error


def circuits_dir() -> Path:
    """The folder of packaged intervention files, one sub-folder a model."""
    return _folder("circuits")


def published_dir() -> Path:
    """The folder of the paper's figures, as JSON Lines."""
    return _folder("results/published")


@cache
def harmless_prompts() -> tuple[str, ...]:
    """Harmless prompts of our own that ask for long answers, in the file's order: what damage is measured on.

    The task `long_form_quality` and `harmless_kl` ask them. They are in no contrast set and not among the universal
    filter's prompts, so steering was not fitted to them.

    Raises:
        ContrastError: the file is missing or damaged.
    """
    return packaged_prompts(tasks_dir() / "long_form" / "harmless.jsonl")
