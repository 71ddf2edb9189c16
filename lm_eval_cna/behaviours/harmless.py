"""Harmless prompts of our own that ask for long answers: what damage is measured on.

Used by the task `long_form_quality` and by `harmless_kl`. They are in no contrast set and not among the universal
filter's prompts, so steering was not fitted to them; a test compares.
"""

from __future__ import annotations

from functools import cache

from lm_eval_cna.resources import packaged_prompts, tasks_dir


@cache
def harmless_prompts() -> tuple[str, ...]:
    """The packaged prompts, in the file's order.

    Raises:
        ContrastError: the file is missing or damaged.
    """
    return packaged_prompts(tasks_dir() / "long_form" / "harmless.jsonl")
