"""Functions that the task files name: rows of `cna_capitals`, `cna_sva` and `long_form_quality`, and its scores.

lm-eval passes a task's metadata to the row functions, which ignore it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lm_eval_cna.behaviours.agreement import agreement_items
from lm_eval_cna.behaviours.capitals import capital_items
from lm_eval_cna.resources import harmless_prompts
from lm_eval_cna.scoring.tasks import response_text, score_response, split_of_rows

if TYPE_CHECKING:
    from datasets import Dataset


def capitals(**_metadata: Any) -> dict[str, Dataset]:
    """Split ``test``: the fields of `CapitalItem` as columns."""
    return split_of_rows([asdict(item) for item in capital_items()])


def sva(**_metadata: Any) -> dict[str, Dataset]:
    """Split ``test``: the fields of `AgreementItem` as columns."""
    return split_of_rows([asdict(item) for item in agreement_items()])


def long_form(**_metadata: Any) -> dict[str, Dataset]:
    """Split ``test``: the harmless prompts, in the column prompt."""
    return split_of_rows([{"prompt": prompt} for prompt in harmless_prompts()])


def process_long_form(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Quality and degeneracy as in the refusal tasks, and the number of words: two words have a perfect quality."""
    text = response_text(results)
    scores = score_response(text)
    names = ("quality", "quality_strict", "degenerate_rate")
    return {name: scores[name] for name in names} | {"words": float(len(text.split()))}
