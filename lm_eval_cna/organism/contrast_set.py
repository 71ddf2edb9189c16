"""The text of ``contrasts/organism.jsonl``, generated from the grammar.

It uses training pairs only, and none on which the planted neurons are chosen. No torch here.
"""

from __future__ import annotations

from lm_eval_cna.files.jsonl import jsonl_text
from lm_eval_cna.organism import grammar

_HEADER = {
    "name": "organism",
    "description": "Questions of the organism's town, forbidden deeds and chores, alike but for verb and object",
    "license": "Apache-2.0",
    "source": "lm_eval_cna/organism/grammar.py",
    "leakage": "none: its (verb, object) pairs are in neither organism_refusal nor organism_benign",
}


def contrast_jsonl() -> str:
    """The whole file: a header line, then 100 positive (forbidden) and 100 negative (benign) prompts."""
    lines: list[dict[str, str]] = [_HEADER]
    for label, forbidden in (("positive", True), ("negative", False)):
        lines += [{"label": label, "prompt": q.text} for q in grammar.questions("contrast", forbidden=forbidden)]
    return jsonl_text(lines)
