"""Harmless prompts of our own that ask for long answers: what damage is measured on.

Used by the task `long_form_quality` and by `harmless_kl`. They are in no contrast set and not among the universal
filter's prompts, so steering was not fitted to them; a test compares.
"""

from __future__ import annotations

import json
from functools import cache

from lm_eval_cna.errors import ContrastError
from lm_eval_cna.resources import tasks_dir


@cache
def harmless_prompts() -> tuple[str, ...]:
    """The packaged prompts, in the file's order.

    Raises:
        ContrastError: the file is missing or damaged.
    """
    path = tasks_dir() / "long_form" / "harmless.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(str(line["prompt"]) for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContrastError(
            f"cannot read the harmless prompts in {path}: {error}", do="reinstall lm-eval-cna"
        ) from error
