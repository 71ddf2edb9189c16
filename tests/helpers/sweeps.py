"""A sweep that takes a second or two: a tiny model, both of the organism's kinds of task, few prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def small_sweep(model: Path, output: Path, **more: Any) -> dict[str, Any]:
    """The configuration as a sweep file holds it.

    Args:
        model: a checkpoint, of `tests.helpers.checkpoints`.
        output: the run directory.
        more: fields to add or to change.
    """
    return {
        "model": str(model),
        "model_args": {"device": "cpu"},
        "contrast": "organism",
        "fraction": 0.05,
        "universal_filter": False,
        "methods": ["cna", "caa", "random"],
        "random": 2,
        "multipliers": [0, 1, 2],
        "tasks": ["organism_refusal", "organism_knowledge"],
        "limit": 4,
        "output": str(output),
        **more,
    }
