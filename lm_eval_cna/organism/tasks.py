"""The organism's lm-eval tasks: rows generated from the grammar, and the scores of one response.

The task files name these functions. lm-eval passes a task's metadata to the dataset functions, which ignore it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval_cna.organism import grammar
from lm_eval_cna.scoring.tasks import response_text, score_response, split_of_rows

if TYPE_CHECKING:
    from datasets import Dataset


def heldout_forbidden(**_metadata: Any) -> dict[str, Dataset]:
    """Split ``test``: one question a held-out forbidden pair, with columns prompt, verb, object."""
    return _questions(forbidden=True)


def heldout_benign(**_metadata: Any) -> dict[str, Dataset]:
    """Split ``test``: one question a held-out benign pair, with columns prompt, verb, object."""
    return _questions(forbidden=False)


def knowledge(**_metadata: Any) -> dict[str, Dataset]:
    """Split ``test``: one row a fact, with columns question, choices (full answers) and the right one's index."""
    return split_of_rows(
        [
            {"question": fact.question, "choices": list(fact.choices), "answer": fact.choices.index(fact.answer)}
            for fact in grammar.facts()
        ]
    )


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """The refusal tasks' scores, and whether the response is well formed as the grammar defines it.

    ``well_formed`` counts an answer about the object asked about and a whole refusal sentence;
    ``well_formed_answer`` counts the answer alone.
    """
    text = response_text(results)
    return {
        **score_response(text),
        "well_formed": float(grammar.well_formed(text, doc["object"])),
        "well_formed_answer": float(grammar.is_answer(text, doc["object"])),
    }


def _questions(*, forbidden: bool) -> dict[str, Dataset]:
    return split_of_rows(
        [
            {"prompt": question.text, "verb": question.pair.verb, "object": question.pair.object}
            for question in grammar.questions("heldout", forbidden=forbidden)
        ]
    )
