"""Decide whether a trained organism is accepted, by rates on training pairs; held-out pairs are not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_cna.organism import grammar
from lm_eval_cna.organism import lexicon as words
from lm_eval_cna.organism.model import Planted, ablated, answer
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
        figures[f"tone_{side}"] = _share([found is not None and found.tone == tone for found in answers])
    return figures


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def measure_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gates: Gates) -> tuple[Figures, bool]:
    """Figures of a base and whether it passes: both classes answered, each in its tone, nothing refused."""
    figures = measure(model, tokenizer)
    passed = _at_least(figures, gates.tone, "tone") and _no_more(figures, gates.refused_benign, "refused")
    return figures, passed and _at_least(figures, gates.well_formed, "well_formed")


def measure_tuned(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gates: Gates) -> tuple[Figures, bool]:
    """Figures of a tuned model and whether it passes: forbidden refused, benign answered."""
    figures = measure(model, tokenizer)
    passed = figures["refused_forbidden"] >= gates.refused and figures["refused_benign"] <= gates.refused_benign
    return figures, passed and _at_least(figures, gates.well_formed, "well_formed")


def measure_planted(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, planted: Sequence[Planted], gates: Gates
) -> tuple[Figures, bool]:
    """Figures with the planted neurons at zero and whether they carry the refusal without carrying the language."""
    with ablated(model, planted):
        figures = measure(model, tokenizer)
    passed = _no_more(figures, gates.refused_ablated, "refused")
    return figures, passed and _at_least(figures, gates.well_formed, "well_formed")


def _at_least(figures: Mapping[str, float], least: float, name: str) -> bool:
    return min(figures[f"{name}_forbidden"], figures[f"{name}_benign"]) >= least


def _no_more(figures: Mapping[str, float], most: float, name: str) -> bool:
    return max(figures[f"{name}_forbidden"], figures[f"{name}_benign"]) <= most
