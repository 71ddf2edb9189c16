"""A table as it came out: what paper.json holds. Floor 6."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lm_eval_cna.paper.rows import PaperRow
from lm_eval_cna.statistics.rates import AnalysisRecord

SCHEMA: Literal["lm-eval-cna/paper/1"] = "lm-eval-cna/paper/1"


class Skipped(AnalysisRecord):
    """A model that has no rows, and the reason."""

    model: str
    why: str


class Result(AnalysisRecord):
    """A table as it came out.

    Attributes:
        table, title: which.
        protocol: its name; `statement` says what it does.
        published: how the authors measured it.
        ours: what is different here in every row.
        rows: the comparisons.
        skipped: models without rows.
        command: what the user typed.
        created: when, in UTC.
    """

    schema_: Literal["lm-eval-cna/paper/1"] = Field(default=SCHEMA, alias="schema")
    table: str
    title: str
    protocol: str
    statement: str
    published: tuple[str, ...]
    ours: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    skipped: tuple[Skipped, ...]
    command: tuple[str, ...]
    created: str
