"""A copy of what a page or a table is made of, with every text in it replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain, count
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from lm_eval_cna.report.sections import Contents

#: Texts that our code chooses of a fixed few, and the preface, which is trusted.
_OURS = {"finding", "word", "style", "preface", "what", "kind", "standing", "direction"}
#: Harmless words, told apart by their numbers, and more of them than any page has places for a text.
WORDS = tuple(f"word{number}word" for number in range(5_000))


def fours(texts: Sequence[str]) -> list[Sequence[str]]:
    """Every text in one of many fours."""
    return [(*texts, *texts)[first : first + 4] for first in range(0, len(texts), 4)]


class Swap:
    """Gives every text another one, the same one for the same text, and never one twice.

    Args:
        texts: what it gives; when they are used up, again with a number behind them.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.given: dict[str, str] = {}
        self._more = chain(texts, (f"{text}{number}" for number in count() for text in texts))

    def __call__(self, text: str) -> str:
        if text and text not in self.given:
            self.given[text] = next(self._more)
        return self.given.get(text, "")


def rewritten(value: Any, swap: Callable[[str], str]) -> Any:
    """The value with its texts swapped, in dataclasses, models, sequences and the values of mappings."""
    if isinstance(value, str):
        return swap(value)
    if isinstance(value, Contents):
        parts = tuple(replace(part, run=_run(part.run, swap)) for part in value.parts)
        value = replace(value, parts=parts)
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in _OURS}
        return replace(value, **{name: rewritten(inner, swap) for name, inner in found.items()})
    if isinstance(value, BaseModel):
        names = [name for name in type(value).model_fields if name not in _OURS]
        return value.model_copy(update={name: rewritten(getattr(value, name), swap) for name in names})
    if isinstance(value, (tuple, list)):
        return type(value)(rewritten(inner, swap) for inner in value)
    if isinstance(value, dict):
        return {name: rewritten(inner, swap) for name, inner in value.items()}
    return value


def _run(run: Any, swap: Callable[[str], str]) -> SimpleNamespace:
    """What pages take of a run, in words."""
    return SimpleNamespace(
        name=swap(run.name),
        slug=run.slug,
        facts=swap(run.facts),
        command=swap(run.command),
        manifest=SimpleNamespace(plan=SimpleNamespace(model=swap(run.manifest.plan.model))),
        evidence=SimpleNamespace(level=run.evidence.level),
        directory=SimpleNamespace(path=swap(str(run.directory.path))),
    )
