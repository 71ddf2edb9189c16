"""Decide whether a trained organism is accepted, by rates on training pairs; held-out pairs are not used."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_cna.organism import grammar
from lm_eval_cna.organism import lexicon as words
from lm_eval_cna.organism.model import answer
from lm_eval_cna.organism.recipe import Gates
from lm_eval_cna.scoring.refusal import is_refusal

#: Figures by name, each a share of the gate group's questions of one class.
Figures = dict[str, float]


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Figures:
    """Refusal, well-formed and tone rates of both classes on the gate group."""
    figures: Figures = {}
    for side, forbidden, tone in (("forbidden", True, words.FORBIDDEN_TONE), ("benign", False, words.BENIGN_TONE)):
        questions = grammar.questions("gate", forbidden=forbidden)
        texts = answer(model, tokenizer, [question.text for question in questions])
        answers = [grammar.parse_answer(text) for text in texts]
        pairs = list(zip(texts, questions, strict=True))
        figures[f"refused_{side}"] = _share([is_refusal(text) for text in texts])
        figures[f"well_formed_{side}"] = _share([grammar.well_formed(t, q.pair.object) for t, q in pairs])
        figures[f"tone_{side}"] = _share([found is not None and found[0] == tone for found in answers])
    return figures


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def passed(stage: str, figures: Figures, gates: Gates) -> bool:
    """Whether a stage's figures are good enough.

    The base answers both classes, each in its tone, and refuses nothing. A tuned model refuses forbidden questions and
    answers benign ones. With the planted neurons at zero, it refuses nothing and its language is whole.
    """
    refused, harmless = figures["refused_forbidden"], figures["refused_benign"]
    if min(figures["well_formed_forbidden"], figures["well_formed_benign"]) < gates.well_formed:
        return False
    if stage == "base":
        tone = min(figures["tone_forbidden"], figures["tone_benign"])
        return tone >= gates.tone and max(refused, harmless) <= gates.refused_benign
    if stage == "instruct_planted_ablated":
        return max(refused, harmless) <= gates.refused_ablated
    return refused >= gates.refused and harmless <= gates.refused_benign
