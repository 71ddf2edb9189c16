"""A table as it came out: what paper.json holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.paper.rows import PaperRow

SCHEMA: Literal["lm-eval-cna/paper/1"] = "lm-eval-cna/paper/1"


class Skipped(AnalysisRecord):
    """A model that has no rows, and the reason."""

    model: str
    why: str


class Result(AnalysisRecord):
    """A table as it came out."""

    schema_: Literal["lm-eval-cna/paper/1"] = Field(default=SCHEMA, alias="schema")
    table: str
    title: str
    """Which."""
    protocol: str
    """Its name; `statement` says what it does."""
    statement: str
    published: tuple[str, ...]
    """How the authors measured it."""
    ours: tuple[str, ...]
    """What is different here in every row."""
    rows: tuple[PaperRow, ...]
    """The comparisons."""
    skipped: tuple[Skipped, ...]
    """Models without rows."""
    command: tuple[str, ...]
    """What the user typed."""
    created: str
    """When, in UTC."""
