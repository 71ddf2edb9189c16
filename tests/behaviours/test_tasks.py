"""Items and contrast sets of capitals and agreement, the harmless prompts, and the scores of long answers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna import resources
from lm_eval_cna.behaviours.agreement import STRUCTURES, agreement_items, vocabulary
from lm_eval_cna.behaviours.capitals import CHOICES, CONTRAST_COUNTRIES, capital_items, capitals
from lm_eval_cna.behaviours.tasks import process_long_form
from lm_eval_cna.contrast.leakage import find_leaks, normalise
from lm_eval_cna.contrast.loading import load_contrast, load_universal_prompts
from lm_eval_cna.errors import ContrastError
from lm_eval_cna.resources import harmless_prompts
from lm_eval_cna.scoring.tasks import score_response

CONTRAST_CAPITALS = {"Paris", "Tokyo", "Cairo", "Ottawa", "Rome", "Nairobi", "Lima", "Oslo"}


def digest(items: Any) -> str:
    return hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest()[:16]


def test_items_are_the_same_everywhere() -> None:
    # If this fails because items were changed on purpose: raise the task's version, too.
    assert digest(capital_items()) == "4f9b27b7f2a1641d"
    assert digest(agreement_items()) == "2ad93aee2ea08317"


def test_facts_have_no_slip_that_a_machine_can_see() -> None:
    facts = [pair for of_continent in capitals().values() for pair in of_continent.items()]
    assert len(facts) >= 100
    assert len({country for country, _ in facts}) == len({capital for _, capital in facts}) == len(facts)
    for country, capital in facts:
        assert country.strip() == country and capital.strip() == capital and capital[0].isupper()
        name = country.removeprefix("the ").casefold()
        assert capital.casefold() not in name and name not in capital.casefold(), "the question gives it away"
    assert capitals()["Oceania"]["Australia"] == "Canberra" and capitals()["the Americas"]["Brazil"] == "Brasília"


def test_capital_items() -> None:
    items = capital_items()
    facts = capitals()
    assert len(items) >= 100 and len({item.prompt for item in items}) == len(items)
    for item in items:
        assert item.prompt == f"The capital of {item.country} is"
        assert item.choices[item.answer] == facts[item.continent][item.country]
        assert len(set(item.choices)) == CHOICES and set(item.choices) <= set(facts[item.continent].values())
    places = Counter(item.answer for item in items)
    assert min(places.values()) >= 0.2 * len(items), "always taking one place is no better than chance"
    chosen = Counter(choice for item in items for choice in item.choices)
    assert set(chosen) == {item.choices[item.answer] for item in items}, "no city is only ever wrong"


def test_capital_contrast_differs_in_one_word_and_meets_no_item() -> None:
    contrast, items = load_contrast("capitals"), capital_items()
    asked = " ".join(item.prompt for item in items)
    nouns = set()
    for country, positive, negative in zip(CONTRAST_COUNTRIES, contrast.positive, contrast.negative, strict=True):
        noun = negative.split()[1]
        assert (positive, negative) == (f"The capital of {country} is", f"The {noun} of {country} is")
        assert country not in asked
        nouns.add(noun)
    assert len(nouns) == 8 and "capital" not in nouns
    assert not CONTRAST_CAPITALS & {choice for item in items for choice in item.choices}
    assert contrast.leakage is not None, "nothing is fetched to find out"


def test_agreement_items() -> None:
    items = agreement_items()
    assert len(items) == 160 == len({item.prompt for item in items})
    forms = {"is": 0, "was": 0, "has": 0, "seems": 0, "knows": 0, "are": 1, "were": 1, "have": 1, "seem": 1, "know": 1}
    for singular, plural in zip(items[::2], items[1::2], strict=True):
        assert (singular.number, plural.number) == ("singular", "plural")
        assert plural.prompt.split()[1] == singular.prompt.split()[1] + "s", "the subject"
        assert plural.prompt.split()[2:] == singular.prompt.split()[2:], "and nothing else"
        assert plural.choices == singular.choices and plural.answer == 1 - singular.answer
        for item in (singular, plural):
            assert forms[item.choices[item.answer]] == (item.number == "plural")
            assert forms[item.choices[0]] != forms[item.choices[1]]
    assert Counter(item.structure for item in items) == dict.fromkeys(STRUCTURES, 40)
    assert Counter(item.answer for item in items) == {0: 80, 1: 80}
    assert Counter(item.attractor for item in items) == {"none": 40, "same": 60, "other": 60}
    for item in items:
        if item.attractor != "none":
            nearest = [word for word in item.prompt.split() if word in vocabulary()][-1]
            same = nearest.endswith("s") == (item.number == "plural")
            assert item.attractor == ("same" if same else "other")
        if item.structure == "object relative":
            *_, noun, verb = item.prompt.split()
            assert noun.endswith("s") != verb.endswith("s"), "the verb inside the clause agrees too"


def test_agreement_contrast_holds_the_same_words_as_subject_and_as_object() -> None:
    contrast = load_contrast("sva")
    assert len(contrast.positive) == len(contrast.negative) == 8
    for positive, negative in zip(contrast.positive, contrast.negative, strict=True):
        assert negative.split()[2:] == ["the", *positive.split()[1:]]
    plural = [prompt.split()[1].endswith("s") for prompt in contrast.positive]
    other = [prompt.endswith("s") != is_plural for prompt, is_plural in zip(contrast.positive, plural, strict=True)]
    assert plural.count(True) == plural.count(False) == 4
    assert other.count(True) >= 4, "the nearest noun must not give the number away"
    assert not {word for prompt in contrast.prompts for word in normalise(prompt).split()} & vocabulary()
    assert contrast.leakage is not None


def test_harmless_prompts() -> None:
    prompts = harmless_prompts()
    assert len(prompts) >= 40 and len(set(map(normalise, prompts))) == len(prompts)
    others = {*load_universal_prompts()}
    for name in ("refusal-8", "organism", "capitals", "sva"):
        others |= {*load_contrast(name).prompts}
    assert find_leaks(prompts, sorted(others)).matches == ()


def test_damaged_harmless_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "tasks_dir", lambda: tmp_path)
    harmless_prompts.cache_clear()
    with pytest.raises(ContrastError, match="cannot read the packaged prompts"):
        harmless_prompts()


def test_a_loop_that_sets_in_late_is_seen_in_a_long_answer_only() -> None:
    sound = " ".join(harmless_prompts()[:16])  # any sound text will do
    long = sound + " And then it goes on and on." * 40
    assert 150 <= len(sound.split()) < 250
    short = " ".join(long.split()[:150])
    assert score_response(short)["degenerate_rate"] == 0 and score_response(short)["quality"] > 0.99
    scores = process_long_form({}, [long])
    assert set(scores) == {"quality", "quality_strict", "degenerate_rate", "words"}
    assert scores["degenerate_rate"] == 1 and scores["quality"] < 0.6 and scores["words"] == len(long.split())
