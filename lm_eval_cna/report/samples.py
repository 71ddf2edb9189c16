"""Data of the sample browser: every prompt with the answer of each cell, each text stored once.

Texts are untrusted and may be harmful: the page holds them as data and shows them as text, only on request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval_cna.analysis.outcomes import unfiltered
from lm_eval_cna.report.run import Run
from lm_eval_cna.report.tables import OUTCOMES, label
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.results.reading import read_plan, results_of
from lm_eval_cna.statistics.paired import Document

#: Most characters of one text, and of all texts before answers of further control seeds are left out, so that the page
#: still opens at once.
LONGEST_TEXT = 20_000
MOST_CHARACTERS = 6_000_000
#: Metrics of a document that are shown beside its outcome.
_SCORES = ("strongreject_score", "rating10_score", "exact_match", "acc")
_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class Texts:
    """Numbered texts, each stored once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.characters = 0
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]} [{len(text) - LONGEST_TEXT:,} more characters]"
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
            self.characters += len(text)
        return self._numbers[text]


def browser_data(runs: Sequence[Run], *, most: int = MOST_CHARACTERS) -> dict[str, Any]:
    """Data for the script of the page; beyond `most` characters of text, control seeds but the first are left out.

    Returns:
        `texts`; `outcomes`, their names; `left_out`, control cells without samples; `groups`, one per task of a run:
        `run`, `task`, `score` (the metric shown), `judged`, `cells` (name; 0 for the baseline, 2 for a control seed,
        else 1) and `rows`. A row is [prompt, answers]; an answer is [cell, text, outcome, refusal by keyword, refusal
        by judge, score] with None for what is missing.
    """
    texts, groups, left_out = Texts(), [], 0
    for run in runs:
        cells = run.outcomes.cells
        # Further control seeds come last, so that they are left out first.
        order = sorted(cells, key=lambda key: (cells[key].seed or 0) > 0)
        found: dict[str, dict[Document, tuple[int, list[list[Any]]]]] = {}
        scores = {task: _score(run, task) for task in run.tasks}
        shown: list[str] = []
        for key in order:
            if (cells[key].seed or 0) > 0 and texts.characters > most:
                left_out += 1
                continue
            shown.append(key)
            for task, document, prompt, response in _responses(run, key):
                rows = found.setdefault(task, {})
                _, answers = rows.setdefault(document, (texts.number(prompt), []))
                answers.append([key, texts.number(response), *_judged(run, key, task, document, scores.get(task))])
        place = {key: at for at, key in enumerate(key for key in cells if key in shown)}
        names = [[_name(cells[key]), _kind(cells[key])] for key in place]
        for task, rows in found.items():
            groups.append(
                {
                    "run": run.name,
                    "task": task,
                    "score": scores.get(task),
                    "judged": any((task, "judge_refusal") == asked for asked in run.outcomes.questions()),
                    "cells": names,
                    "rows": [
                        [prompt, sorted([place[key], *rest] for key, *rest in answers)]
                        for prompt, answers in rows.values()
                    ],
                }
            )
    outcomes = [metric.removeprefix("outcome_") for metric in OUTCOMES]
    return {"texts": texts.all, "outcomes": outcomes, "left_out": left_out, "groups": groups}


def _responses(run: Run, cell: str) -> Iterator[tuple[str, Document, str, str]]:
    """(task, document, prompt, response) of every generated response of a cell."""
    for results in results_of(run.directory, read_plan(run.directory), cell):
        for task, samples in results.get("samples", {}).items():
            template = results.get("configs", {}).get(task, {}).get("doc_to_text")
            seen = set()
            for sample in samples:
                response = sample["resps"][0][0]
                if not isinstance(response, str) or sample["doc_id"] in seen:
                    continue  # a log-likelihood, or the same response through a further filter
                seen.add(sample["doc_id"])
                yield task, sample["doc_id"], _prompt(template, sample), response


def _prompt(template: Any, sample: Mapping[str, Any]) -> str:
    """The document's field that is the prompt, else the prompt as the model got it."""
    field = _FIELD.fullmatch(template.strip()) if isinstance(template, str) else None
    document = sample.get("doc")
    if field is not None and isinstance(document, dict) and field[1] in document:
        return str(document[field[1]])
    arguments = sample.get("arguments")
    try:
        return str(arguments[0][0])  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return f"document {sample['doc_id']}"


def _judged(run: Run, cell: str, task: str, document: Document, score: str | None) -> list[Any]:
    def of(metric: str) -> float | None:
        return run.outcomes.of(cell, task, metric).get(document)

    outcome = next((number for number, metric in enumerate(OUTCOMES) if of(metric) == 1.0), None)
    keyword, judge = (None if value is None else int(value) for value in (of("refusal_rate"), of("judge_refusal")))
    value = None if score is None else of(score)
    return [outcome, keyword, judge, None if value is None else round(value, 3)]


def _score(run: Run, task: str) -> str | None:
    """The metric that is shown beside an answer's outcome."""
    metrics = [metric for asked, metric in run.outcomes.questions() if asked == task]
    return next((metric for name in _SCORES for metric in metrics if unfiltered(metric) == name), None)


def _kind(cell: Cell) -> int:
    return 0 if cell.method == "baseline" else 1 if cell.seed is None else 2


def _name(cell: Cell) -> str:
    if cell.method == "baseline":
        return cell.method
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    return f"{label(cell.method, cell.size)}{seed}, m = {cell.multiplier:g}"
