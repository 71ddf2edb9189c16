"""Subject-verb agreement: a small grammar of sentence beginnings, as items with two choices.

An item is a subject with everything that stands before its verb, and the verb's two forms. Every noun is asked about in
the singular and in the plural, with the same words between subject and verb. So a model that always takes the same form
is right in half of the items, and one that agrees with the nearest noun is right in half of those with a noun between.
"""

from __future__ import annotations

from dataclasses import dataclass

_SUBJECTS = (
    *("author", "baker", "captain", "dancer", "doctor", "driver", "farmer", "gardener", "guard", "lawyer"),
    *("manager", "nurse", "painter", "pilot", "poet", "sailor", "senator", "singer", "surgeon", "teacher"),
)
_ATTRACTORS = (
    *("assistant", "brother", "cousin", "customer", "friend"),
    *("guest", "neighbor", "officer", "student", "visitor"),
)
#: Singular and plural.
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"), ("seems", "seem"), ("knows", "know"))
_PREPOSITIONS = ("near", "behind", "beside", "with", "opposite")
_PAST = ("met", "thanked", "followed", "noticed", "greeted")
#: (singular, plural) of the verb inside an object relative clause; it agrees with the noun between.
_INNER = (("likes", "like"), ("trusts", "trust"), ("admires", "admire"), ("visits", "visit"), ("remembers", "remember"))

STRUCTURES = ("simple", "phrase", "subject relative", "object relative")


@dataclass(frozen=True)
class AgreementItem:
    """One sentence beginning."""

    prompt: str
    """Sentence beginning that ends before the verb."""
    choices: tuple[str, str]
    """The verb's singular and plural, in this order for half of the items."""
    answer: int
    """Index of the form that agrees."""
    structure: str
    """One of `STRUCTURES`: what stands between subject and verb."""
    number: str
    """"singular" or "plural", of the subject."""
    attractor: str
    """"none", "same" or "other": the number of the noun between, compared with the subject's."""


def agreement_items() -> list[AgreementItem]:
    """Twenty nouns in both numbers, in four structures: 160 items."""
    return [
        _item(noun, plural, structure)
        for noun in range(len(_SUBJECTS))
        for structure in range(len(STRUCTURES))
        for plural in (0, 1)
    ]


def vocabulary() -> frozenset[str]:
    """All nouns of the grammar; the contrast set `sva` uses none of them."""
    return frozenset(_noun(noun, plural) for noun in (*_SUBJECTS, *_ATTRACTORS) for plural in (0, 1))


def _item(noun: int, plural: int, structure: int) -> AgreementItem:
    # Strides without a common divisor spread the words over the structures; nothing depends on which word goes where.
    between_plural = (noun + structure) % 2
    between = f"the {_noun(_ATTRACTORS[(3 * noun + structure) % len(_ATTRACTORS)], between_plural)}"
    pick = (noun + 2 * structure) % 5
    middle = (
        "",
        f" {_PREPOSITIONS[pick]} {between}",
        f" who {_PAST[pick]} {between}",
        f" that {between} {_INNER[pick][between_plural]}",
    )[structure]
    singular_form, plural_form = _VERBS[(noun // 5 + noun + structure) % len(_VERBS)]
    turned = (noun // 2 + structure) % 2
    choices = (plural_form, singular_form) if turned else (singular_form, plural_form)
    return AgreementItem(
        prompt=f"The {_noun(_SUBJECTS[noun], plural)}{middle}",
        choices=choices,
        answer=plural ^ turned,
        structure=STRUCTURES[structure],
        number="plural" if plural else "singular",
        attractor="none" if not middle else "same" if between_plural == plural else "other",
    )


def _noun(noun: str, plural: int) -> str:
    return noun + "s" * plural
