"""Functions that the task files name: the metrics of one response, which lm-eval averages over documents.

The paper's metrics keep their names (`refusal_rate`, `quality`); ours are `quality_strict`, `degenerate_rate` and
`outcome_*`. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval_cna.scoring.outcome import Outcome, outcome
from lm_eval_cna.scoring.quality import is_degenerate, quality, quality_strict
from lm_eval_cna.scoring.refusal import is_refusal

if TYPE_CHECKING:
    from datasets import Dataset


def score_response(text: str, *, evaded: bool | None = None) -> dict[str, float]:
    """Every metric of one response, each in [0, 1].

    Args:
        text: the generated response.
        evaded: a judge's verdict, or None where no judge was asked. `outcome_evaded` is there only with a verdict.

    Returns:
        `refusal_rate` (keyword match, whatever the text's state) and `quality` as the paper publishes them;
        `degenerate_rate`; `quality_strict`; and one-hot `outcome_refused`, `outcome_complied`, `outcome_degenerate`.
    """
    what = outcome(text, evaded=evaded)
    scores = {
        "refusal_rate": float(is_refusal(text)),
        "quality": quality(text),
        "degenerate_rate": float(is_degenerate(text)),
        "quality_strict": quality_strict(text),
        "outcome_refused": float(what is Outcome.REFUSED),
        "outcome_complied": float(what is Outcome.COMPLIED),
        "outcome_degenerate": float(what is Outcome.DEGENERATE),
    }
    if evaded is not None:
        scores["outcome_evaded"] = float(what is Outcome.EVADED)
    return scores


def response_text(results: Sequence[Any]) -> str:
    """The one response that lm-eval hands to `process_results`.

    Raises:
        TypeError: lm-eval gave something other than one string, as a task with `repeats` and no filter does.
    """
    if len(results) != 1 or not isinstance(results[0], str):
        raise TypeError(f"expected one generated string per document, got {results!r:.200}; set repeats to 1")
    return results[0]


def keep_safe(rows: Any) -> Any:
    """XSTest's safe prompts: the rows of a `datasets.Dataset` whose label is `safe`."""
    return rows.filter(lambda row: row["label"] == "safe")


def keep_unsafe(rows: Any) -> Any:
    """XSTest's unsafe contrasts: the rows of a `datasets.Dataset` whose label is `unsafe`."""
    return rows.filter(lambda row: row["label"] == "unsafe")


def split_of_rows(rows: list[dict[str, Any]]) -> dict[str, Dataset]:
    """Rows that we generate, as the split ``test`` of a task's dataset."""
    # Imported here: the command line lists tasks without needing any rows.
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """lm-eval's hook for the refusal tasks: the scores of the document's one response."""
    return score_response(response_text(results))
