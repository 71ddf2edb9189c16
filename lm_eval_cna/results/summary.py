"""summary.json: every number that reports read, from lm-eval's own results files. Importable without torch."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import HARMLESS_KL, RunDirectory
from lm_eval_cna.results.reading import StoredDivergence, read_divergences, read_results
from lm_eval_cna.results.responses import Response
from lm_eval_cna.scoring.outcome import changed, edit_similarity

#: The task name of first-token divergence.
HARMLESS_TASK = "harmless_prompts"
#: The task name of counts over all generated responses of a cell.
RESPONSES = "all_responses"
#: The entry with these counts in `config.cna` of a results file.
GENERATED = "generated"
SUMMARY_SCHEMA: Literal["lm-eval-cna/summary/1"] = "lm-eval-cna/summary/1"


class CellSummary(AnalysisRecord):
    """One metric of one task in one cell."""

    cell: str
    """The cell's key."""
    method: str
    multiplier: float
    seed: int | None = None
    size: int | None = None
    """Neurons of the circuit; None for the whole circuit and for vectors."""
    task: str
    """Name of the task or group."""
    metric: str
    """Name of the metric."""
    value: float
    """The metric, aggregated over the documents."""
    stderr: float | None = None
    """lm-eval's standard error, where it has one."""
    n: int
    """Number of documents."""


class Summary(AnalysisRecord):
    """What a sweep measured."""

    schema_: Literal["lm-eval-cna/summary/1"] = Field(default=SUMMARY_SCHEMA, alias="schema")
    measured: tuple[CellSummary, ...]
    """Every metric of every cell."""
    judge: str | None = None
    """First digits of the fingerprint of the judge whose verdicts it holds; None without a judge."""

    def values(self, task: str, metric: str, *, method: str, multiplier: float, size: int | None = None) -> list[float]:
        """The values of a metric in all cells of a method at a multiplier; several for a control's seeds."""
        return [
            row.value
            for row in self.measured
            if (row.task, row.metric, row.method, row.multiplier, row.size) == (task, metric, method, multiplier, size)
        ]


def read_summary(directory: RunDirectory) -> Summary:
    """Read a run directory's summary.

    Raises:
        RunError: it is missing or damaged.
    """
    document = directory.read_json("summary.json")
    try:
        return Summary.model_validate(document)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{directory.path / 'summary.json'} is damaged: {first}", do="run the sweep again") from error


def summarize(directory: RunDirectory, cells: list[Cell], settings: list[str]) -> Summary:
    """Gather the metrics of all cells, and how far their texts are from the baseline's.

    Args:
        directory: the run directory; all cells are evaluated.
        cells: the sweep's cells.
        settings: names of its evaluation settings.
    """
    measured: list[CellSummary] = []
    counts: dict[Cell, list[dict[str, int]]] = {cell: [] for cell in cells}
    for setting in settings:
        untouched = _texts(read_results(directory, directory.results_name(BASELINE.key, setting)))
        for cell in cells:
            name = directory.results_name(cell.key, setting)
            if directory.has(name):
                results = read_results(directory, name)
                measured += _metrics(cell, results)
                measured += _changes(cell, _texts(results), untouched)
                counts[cell].append(((results.get("config") or {}).get("cna") or {}).get(GENERATED) or {})
    divergences = read_divergences(directory)
    for cell in cells if divergences else ():
        if cell.key not in divergences:
            raise RunError(f"{directory.path / HARMLESS_KL} lacks {cell.key}", do="delete it and run the sweep again")
        measured += _divergence(cell, divergences[cell.key])
    for cell, found in counts.items():
        measured += _generated(cell, found)
    return Summary(measured=tuple(measured))


def generated(responses: Iterable[Response]) -> dict[str, dict[str, int]]:
    """Counts over a cell's generated responses, for its results file; lm-eval does not see them."""
    found = [response for response in responses if response.tokens]
    tokens, ties = sum(response.tokens for response in found), sum(response.near_ties for response in found)
    return {GENERATED: {"n": len(found), "tokens": tokens, "near_ties": ties}}


def _generated(cell: Cell, counts: list[dict[str, int]]) -> list[CellSummary]:
    """Mean length of a cell's generated responses, and near-ties over all of them."""
    n, tokens, ties = (sum(count.get(of, 0) for count in counts) for of in ("n", "tokens", "near_ties"))
    if not n:
        return []
    shown = {"task": RESPONSES, "n": n, **coordinates(cell)}
    return [
        CellSummary(metric="tokens", value=tokens / n, **shown),
        CellSummary(metric="near_ties", value=float(ties), **shown),
    ]


def _divergence(cell: Cell, kept: StoredDivergence) -> list[CellSummary]:
    """Mean and 95th percentile of the KL; none where a steered distribution was not finite."""
    return [
        CellSummary(**coordinates(cell), task=HARMLESS_TASK, metric=metric, value=value, n=len(kept.values))
        for metric, value in (("harmless_kl", kept.mean), ("harmless_kl_p95", kept.p95))
        if value is not None
    ]


def _metrics(cell: Cell, results: dict[str, Any]) -> list[CellSummary]:
    rows = []
    for task, metrics in results["results"].items():
        counts = results.get("n-samples", {}).get(task, {})
        length = metrics.get("sample_len")
        documents = counts.get("effective", length if isinstance(length, int) else 0) or 0
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            named = metric if filter_name == "none" else f"{metric} ({filter_name})"
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            rows.append(
                CellSummary(
                    **coordinates(cell),
                    task=task,
                    metric=named,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
                    n=documents,
                )
            )
    return rows


def _changes(cell: Cell, texts: dict[str, list[str]], untouched: dict[str, list[str]]) -> list[CellSummary]:
    """`changed_rate` and `edit_similarity` of a cell's responses against the baseline's (DESIGN section 7)."""
    rows = []
    for task, steered in texts.items():
        if len(steered) != len(untouched.get(task, ())):
            raise RunError(
                f"the results of {cell.key} and of {BASELINE.key} have another number of responses of {task}",
                do="delete both and run the sweep again",
            )
        pairs = list(zip(steered, untouched[task], strict=True))
        for metric, values in (
            ("changed_rate", [float(changed(a, b)) for a, b in pairs]),
            ("edit_similarity", [edit_similarity(a, b) for a, b in pairs]),
        ):
            rows.append(CellSummary(**coordinates(cell), task=task, metric=metric, value=fmean(values), n=len(pairs)))
    return rows


def coordinates(cell: Cell) -> dict[str, Any]:
    """A cell as the fields of `CellSummary`."""
    return {"cell": cell.key, **cell._asdict()}


def _texts(results: dict[str, Any]) -> dict[str, list[str]]:
    """Generated responses of each task, in document order; tasks without generated text are left out."""
    texts = {}
    for task, samples in results.get("samples", {}).items():
        # A task with several filters has a sample for each, all with the same response.
        by_document = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
        responses = [by_document[document] for document in sorted(by_document)]
        if responses and all(isinstance(response, str) for response in responses):
            texts[task] = responses
    return texts
