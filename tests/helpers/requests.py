"""Requests as lm-eval makes them, and cna-hf around a model that is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_cna.models.hf import CNAHFLM
from tests.helpers.checkpoints import byte_tokenizer


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Requests of one type."""
    return [Instance(kind, {}, given, number, metadata=("t", number, 1)) for number, given in enumerate(arguments)]


def loaded(model: Any, **arguments: Any) -> CNAHFLM:
    """cna-hf on the CPU, with one token a byte."""
    return CNAHFLM(pretrained=model, tokenizer=byte_tokenizer(), device="cpu", **arguments)
