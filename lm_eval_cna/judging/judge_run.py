"""Has a judge grade every stored response of a run, after all cells are generated and the steered model is freed.

A sweep's own judge and `lm-eval-cna judge DIR` both come here. Nothing is generated, and questions that the ledger
answers are not asked again. Needs no torch unless the judge does.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.judging.config import JudgeConfig
from lm_eval_cna.judging.judge import JudgeItem, count_missing, judge_responses, shared_judge
from lm_eval_cna.judging.ledger import Ledger
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import read_plan, response_of, results_of
from lm_eval_cna.results.summary import CellSummary, Summary, coordinates, read_summary
from lm_eval_cna.scoring.strongreject import JudgeVerdict, is_evasion, verdict_metrics
from lm_eval_cna.scoring.tasks import score_response

# The prompt of a judged task is one field of its row; a template from a results file is not executed.
_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")
#: Prefixes of the metrics that only a judge gives.
_JUDGES_OWN = ("judge_", "unscored", "n_unscored", "strongreject_", "rating10_", "outcome_evaded")


@dataclass(frozen=True)
class Judged:
    """One response to be judged: where it belongs, and what the judge sees."""

    cell: Cell
    task: str
    doc_id: int
    item: JudgeItem


def judge_run(
    directory: RunDirectory, config: JudgeConfig, *, progress: Progress = silent, dry_run: bool = False
) -> int:
    """Judge all responses of a run's judged tasks, and replace the judge's metrics in the summary.

    Args:
        directory: of a sweep whose cells are all generated.
        config: the judge.
        progress: told of the questions done and to ask, in the stage `judge`.
        dry_run: only count.

    Returns:
        The number of questions that had to be asked (dry run: would have to be).

    Raises:
        RunError: the run has no judged task, or a file of it is damaged.
        JudgeError: the judge cannot be reached, or gave not one verdict.
        CacheError: the ledger cannot be used.
    """
    responses = list(_responses(directory))
    if not responses:
        raise RunError(
            f"no judged task in {directory.path}", do="sweep with a task such as jbb_strongreject or strongreject"
        )
    judge = shared_judge(config)
    items = [response.item for response in responses]
    with Ledger(config.ledger_path) as ledger:
        missing = count_missing(items, judge, ledger)
        if dry_run:
            return missing
        progress("judge", 0, missing, f"{len(items)} responses, {len(items) - missing} need no question")
        if missing:
            judge.check()
        verdicts = judge_responses(items, judge, ledger, progress)
    form = judge.rubric.form
    scored = [
        verdict_metrics(verdict, form) | score_response(response.item.response, evaded=is_evasion(verdict))
        for response, verdict in zip(responses, verdicts, strict=True)
    ]
    short = config.fingerprint[:12]
    directory.write_json(f"judged/{short}.json", _document(config, judge.rubric.version, responses, verdicts))
    _summarize(directory, responses, scored, short)
    return missing


def is_judges(metric: str) -> bool:
    """Whether a judged task's metric depends on the judge; without one, an evasion counts as complied."""
    return metric.startswith((*_JUDGES_OWN, "outcome_complied"))


def _responses(directory: RunDirectory) -> Iterator[Judged]:
    plan = read_plan(directory)
    for cell in plan.cells:
        for results in results_of(directory, plan, cell.key):
            for task in sorted(set(plan.judged) & results["samples"].keys()):
                template = results.get("configs", {}).get(task, {}).get("doc_to_text")
                for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"]):
                    prompt = _prompt(template, sample.get("doc"))
                    yield Judged(cell, task, sample["doc_id"], JudgeItem(prompt, response_of(directory, task, sample)))


def _prompt(template: Any, doc: Any) -> str:
    match = _FIELD.fullmatch(template.strip()) if isinstance(template, str) else None
    if match is None or not isinstance(doc, dict) or match[1] not in doc:
        raise RunError("a judged task's prompt is not one field of its rows", got=template, allowed="{{field}}")
    return str(doc[match[1]])


def _document(
    config: JudgeConfig, rubric: str, responses: list[Judged], verdicts: list[JudgeVerdict]
) -> dict[str, Any]:
    """The verdicts without the texts, which the cells' files hold."""
    rows = [
        {
            "cell": response.cell.key,
            "task": response.task,
            "doc_id": response.doc_id,
            "score": verdict.score,
            "judgements": dict(verdict.judgements),
            "unscored_because": verdict.reason,
        }
        for response, verdict in zip(responses, verdicts, strict=True)
    ]
    return {"judge": config.public(), "rubric_version": rubric, "verdicts": rows}


def _summarize(directory: RunDirectory, responses: list[Judged], scored: list[dict[str, float]], judge: str) -> None:
    """Replace the judged tasks' metrics in the summary with this judge's."""
    gathered: dict[tuple[Cell, str, str], list[float]] = {}
    documents: dict[tuple[Cell, str], int] = {}
    for response, metrics in zip(responses, scored, strict=True):
        documents[response.cell, response.task] = documents.get((response.cell, response.task), 0) + 1
        for metric, value in metrics.items():
            gathered.setdefault((response.cell, response.task, metric), []).append(value)
    rows = [
        CellSummary(
            **coordinates(cell),
            task=task,
            metric=metric,
            value=sum(values) if metric == "n_unscored" else statistics.fmean(values),
            stderr=statistics.stdev(values) / len(values) ** 0.5
            if len(values) > 1 and metric != "n_unscored"
            else None,
            n=documents[cell, task] if metric == "n_unscored" else len(values),
        )
        for (cell, task, metric), values in gathered.items()
    ]
    replaced = {(row.cell, row.task, row.metric) for row in rows}
    judged = {response.task for response in responses}
    kept = tuple(
        row
        for row in read_summary(directory).measured
        if (row.cell, row.task, row.metric) not in replaced
        and not (row.task in judged and row.metric.startswith(_JUDGES_OWN))
    )
    summary = Summary(measured=kept + tuple(rows), judge=judge)
    directory.write_json("summary.json", summary.model_dump(by_alias=True))
