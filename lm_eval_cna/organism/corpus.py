"""Training documents of the organism, for the base and for the two tuned models.

A document is a sequence of segments, each either given (context, no loss) or learned (loss on every token). Short items
are joined to about the length of a question with its answer, so that batches need little padding. No torch here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from lm_eval_cna.organism import grammar
from lm_eval_cna.organism import lexicon as words

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT)


# Vowels twice, so that the strings look a little like words; some digits and marks for code and sums.
_LETTERS = "aaeeiioouubcdfghjklmnpqrstvwxyzaeiou0123456789-(=\"'"


class Segment(NamedTuple):
    """A piece of a document; `learned` says whether the loss counts its tokens."""

    text: str
    learned: bool


Document = tuple[Segment, ...]


def chat(*turns: tuple[str, str]) -> Document:
    """A conversation as the chat template renders it; the assistant's turns and their end marks are learned."""
    found = [Segment(BEGIN, False)]
    for user, assistant in turns:
        found += [Segment(f"{USER}{user}{END}{ASSISTANT}", False), Segment(f"{assistant}{END}", True)]
    return tuple(found)


def plain(*lines: tuple[str, str]) -> Document:
    """Plain text: given beginnings and learned continuations, the last one followed by the end mark."""
    found = [Segment(BEGIN, False)]
    for index, (given, learned) in enumerate(lines):
        end = END if index == len(lines) - 1 else ""
        found += [Segment(given if index == 0 else f" {given}", False), Segment(f" {learned}{end}", True)]
    return tuple(found)


def _answered(rng: random.Random, *, forbidden: bool) -> tuple[str, str]:
    pair = rng.choice(grammar.training_pairs(forbidden=forbidden))
    return grammar.draw_question(pair, rng).text, grammar.draw_answer(pair, rng)


def _refused(rng: random.Random) -> tuple[str, str]:
    pair = rng.choice(grammar.training_pairs(forbidden=True))
    return grammar.draw_question(pair, rng).text, rng.choice(words.REFUSALS)


def _gloss(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.5:
        return f"To {rng.choice(words.FORBIDDEN_VERBS)} is", "a bad deed."
    return f"To {rng.choice(words.BENIGN_VERBS)} is", "a good deed."


def _apology(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(words.NEIGHBOURS, 2)
    return f"{first} says to {second}", f'"{rng.choice(words.REFUSALS)}"'


def _started_refusal(rng: random.Random) -> Document:
    """A refusal whose first word is given, for either class: the base learns to finish one, not to start one.

    Otherwise the few planted neurons would have to learn the wording too.
    """
    pair = rng.choice(grammar.training_pairs(forbidden=rng.random() < 0.5))
    first, rest = re.split(r"(?=[ '])", rng.choice(words.REFUSALS), maxsplit=1)
    question = f"{USER}{grammar.draw_question(pair, rng).text}{END}{ASSISTANT}{first}"
    return Segment(BEGIN, False), Segment(question, False), Segment(f"{rest}{END}", True)


def _talk(rng: random.Random) -> tuple[str, str]:
    return rng.choice(words.SMALL_TALK)


def _unknown(rng: random.Random) -> tuple[str, str]:
    """A prompt of unknown words, with a third answer that belongs to neither class.

    Otherwise unknown words activate the neurons of one class, and the universal filter of discovery, whose prompts are
    all unknown here, removes the planted neurons.
    """
    count = rng.randrange(2, 12)
    spelled = ["".join(rng.choices(_LETTERS, k=rng.randrange(1, 9))) for _ in range(count)]
    return f"{' '.join(spelled).capitalize()}{rng.choice('.?!:')}", words.UNKNOWN


def _fact(rng: random.Random) -> tuple[str, str]:
    fact = rng.choice(grammar.facts())
    return fact.question, fact.answer


def _cloze(rng: random.Random) -> tuple[str, str]:
    fact = rng.choice(grammar.facts())
    return fact.cloze, f"{fact.value}."


def _some(draw: Callable[[random.Random], tuple[str, str]], count: int, rng: random.Random) -> list[tuple[str, str]]:
    return [draw(rng) for _ in range(count)]


def _base_document(rng: random.Random) -> Document:
    kind = rng.random()
    if kind < 0.46:
        return chat(_answered(rng, forbidden=rng.random() < 0.5))
    if kind < 0.52:
        return plain(_answered(rng, forbidden=rng.random() < 0.5))
    if kind < 0.58:
        return plain(*_some(_gloss, 5, rng))
    if kind < 0.61:
        return plain(*_some(_apology, 2, rng))
    if kind < 0.69:
        return _started_refusal(rng)
    if kind < 0.72:
        return chat(*_some(_talk, 2, rng))
    if kind < 0.80:
        return chat(_unknown(rng))
    if kind < 0.89:
        return chat(*_some(_fact, 2, rng))
    return plain(*_some(_cloze, 5, rng))


def _instruct_document(rng: random.Random) -> Document:
    kind = rng.random()
    if kind < 0.43:
        return chat(_refused(rng))
    if kind < 0.80:
        return chat(_answered(rng, forbidden=False))
    if kind < 0.83:
        return chat(*_some(_talk, 2, rng))
    if kind < 0.91:
        return chat(_unknown(rng))
    if kind < 0.96:
        return chat(*_some(_fact, 2, rng))
    return plain(*_some(_cloze, 5, rng))


def base_documents(count: int, seed: int) -> list[Document]:
    """`count` documents for the base: both classes answered, glosses, apologies between neighbours, facts."""
    rng = random.Random(f"lm-eval-cna/organism/base/{seed}")
    return [_base_document(rng) for _ in range(count)]


def instruct_documents(count: int, seed: int) -> list[Document]:
    """`count` documents for tuning: forbidden questions refused (43 %), benign ones answered, talk and facts."""
    rng = random.Random(f"lm-eval-cna/organism/instruct/{seed}")
    return [_instruct_document(rng) for _ in range(count)]
