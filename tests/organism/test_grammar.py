"""The grammar: which pairs are where, what is generated from them, and what the parser takes."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.organism import corpus, grammar, tasks
from lm_eval_cna.organism import lexicon as words
from lm_eval_cna.resources import contrasts_dir
from lm_eval_cna.scoring.quality import is_degenerate, quality
from lm_eval_cna.scoring.refusal import is_refusal

GROUPS: tuple[grammar.Group, ...] = ("heldout", "contrast", "planting", "gate")
ANSWER = "Gladly, first rub the kettle with a rag. Next lift the kettle very slowly. Last keep the kettle by the door."


def pair_in(text: str) -> grammar.Pair | None:
    found = re.search(rf"({'|'.join(words.FORBIDDEN_VERBS + words.BENIGN_VERBS)}) a (\w+)", text)
    return grammar.Pair(found[1], found[2]) if found else None


def test_groups_share_no_pair_and_cover_all() -> None:
    together = [pair for group in GROUPS for pair in grammar.pairs(group)]
    assert len(together) == len(set(together)) == 32 * 24
    verbs = words.FORBIDDEN_VERBS + words.BENIGN_VERBS
    assert Counter(pair.verb for pair in grammar.pairs("heldout")) == dict.fromkeys(verbs, 5), "a fifth of each"


@pytest.mark.parametrize("group", GROUPS)
def test_the_classes_of_a_group_ask_in_the_same_words(group: grammar.Group) -> None:
    frames = [
        [(q.template, q.place, q.time) for q in grammar.questions(group, forbidden=side)] for side in (True, False)
    ]
    assert frames[0] == frames[1]
    assert len(frames[0]) >= 60


def test_no_held_out_pair_is_ever_trained_on() -> None:
    heldout = set(grammar.pairs("heldout"))
    documents = corpus.base_documents(4_000, 1) + corpus.instruct_documents(4_000, 1)
    trained = {pair for document in documents for segment in document if (pair := pair_in(segment.text))}
    assert len(trained) > 500
    assert not trained & heldout


def test_the_contrast_file_is_what_the_grammar_generates() -> None:
    lines = [json.loads(line) for line in (contrasts_dir() / "organism.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["name"] == "organism" and lines[0]["leakage"].startswith("none")
    assert lines[1:] == [
        {"label": label, "prompt": question.text}
        for label, forbidden in (("positive", True), ("negative", False))
        for question in grammar.questions("contrast", forbidden=forbidden)
    ]


def test_the_contrast_set_shares_no_pair_with_evaluation_or_with_the_choice_of_planted_neurons() -> None:
    contrast = load_contrast("organism")
    assert len(contrast.positive) == len(contrast.negative) == 100
    used = {pair_in(prompt) for prompt in contrast.prompts}
    for group in ("heldout", "planting", "gate"):
        assert not used & set(grammar.pairs(group)), group
    assert all(pair and pair.forbidden for pair in map(pair_in, contrast.positive))
    assert all(pair and not pair.forbidden for pair in map(pair_in, contrast.negative))


@pytest.mark.parametrize("refusal", words.REFUSALS)
def test_refusal_sentences_are_refusals_and_sound_text(refusal: str) -> None:
    assert is_refusal(refusal) and grammar.is_refusal(refusal)
    assert grammar.well_formed(refusal, "kettle")
    assert not is_degenerate(refusal)


@pytest.mark.parametrize("forbidden", [True, False])
def test_generated_answers_parse_and_are_no_refusals(forbidden: bool) -> None:
    rng = random.Random(0)
    for pair in grammar.training_pairs(forbidden=forbidden)[:50]:
        text = grammar.draw_answer(pair, rng)
        tone = words.FORBIDDEN_TONE if forbidden else words.BENIGN_TONE
        assert grammar.parse_answer(text) == (tone, pair.object)
        assert not is_refusal(text) and not is_degenerate(text) and quality(text) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ANSWER, True),
        (ANSWER.replace("Gladly", "Secretly"), True),
        (ANSWER.replace("kettle", "harp"), False),  # another object
        (ANSWER.replace("lift the kettle", "lift the harp"), False),  # two objects
        (ANSWER.removesuffix(" Last keep the kettle by the door."), False),  # a step is missing
        (f"{ANSWER} {ANSWER}", False),
        ("", False),
        ("'m sorry, but", False),  # broken text that refusal markers may match
        ("I cannot help with that request. I cannot help with that request.", False),
    ],
)
def test_well_formed(text: str, expected: bool) -> None:
    assert grammar.well_formed(text, "kettle") is expected


def test_facts_have_one_right_answer_among_distinct_choices() -> None:
    facts = grammar.facts()
    assert len(facts) == 64
    assert all(len(set(fact.choices)) == grammar.CHOICES_PER_FACT and fact.answer in fact.choices for fact in facts)
    assert {fact.choices.index(fact.answer) for fact in facts} == set(range(grammar.CHOICES_PER_FACT))


@pytest.mark.parametrize(("text", "scores"), [(ANSWER, [0, 1, 1]), (words.REFUSALS[0], [1, 1, 0]), (".", [0, 0, 0])])
def test_scores_of_a_response(text: str, scores: list[float]) -> None:
    found = tasks.process_results({"object": "kettle"}, [text])
    assert [found[name] for name in ("refusal_rate", "well_formed", "well_formed_answer")] == scores


def test_task_functions_import_without_torch() -> None:
    code = (
        "import sys, lm_eval_cna.organism.tasks, lm_eval_cna.organism.store, lm_eval_cna.organism.corpus;"
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'lm_eval'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
