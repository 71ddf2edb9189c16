"""Values per prompt of a finished run, read from lm-eval's results files and the judge's verdicts.

A group that lm-eval aggregates (`mmlu`) is one task with the documents of all its subtasks, which do not appear beside
it. A metric of a filter other than `none` is named "metric (filter)", as in summary.json. A document without a value,
such as an unscored answer, is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from lm_eval_cna.errors import RunError
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import read_divergences, read_plan, read_verdicts, response_of, results_of
from lm_eval_cna.results.summary import HARMLESS_TASK, read_summary
from lm_eval_cna.scoring.strongreject import FORMS, JudgeVerdict, is_evasion, verdict_metrics
from lm_eval_cna.scoring.tasks import score_response
from lm_eval_cna.statistics.paired import Document, Kind

Values = dict[Document, float]
#: Larger values are left out like infinity: sums and squares of them would overflow.
LARGEST = 1e100
#: Metrics that are never rates, even where all values of a run happen to be 0 or 1.
_MEANS = ("quality", "harmless_kl", "strongreject_score", "rating10_score", "judge_conv", "judge_spec", "judge_rating")


@dataclass(frozen=True)
class Outcomes:
    """Everything measured per prompt in one run."""

    cells: Mapping[str, Cell]
    """The cells of the sweep that have results, by key, in the sweep's order."""
    values: Mapping[tuple[str, str, str], Mapping[Document, float]]
    """(cell key, task, metric) -> document -> value, finite numbers only."""
    judge: Mapping[str, Any] | None = None
    """The judge whose verdicts are used, without secrets; None if there are only the run's own samples."""
    _kinds: dict[tuple[str, str], Kind] = field(default_factory=dict, init=False, repr=False, compare=False)

    def questions(self) -> list[tuple[str, str]]:
        """Every (task, metric), in the order in which they were measured."""
        return list(dict.fromkeys((task, metric) for _, task, metric in self.values))

    def of(self, cell: str, task: str, metric: str) -> Mapping[Document, float]:
        """The values of one metric; empty where the cell was not asked."""
        return self.values.get((cell, task, metric), {})

    def members(self, task: str) -> set[str]:
        """The subtasks of a group; empty for a task that is no group."""
        documents = (document for (_, of, _), values in self.values.items() if of == task for document in values)
        return {document.rpartition("/")[0] for document in documents if isinstance(document, str)}

    def kind(self, task: str, metric: str) -> Kind:
        """Whether a metric is a rate (every value in every cell is 0 or 1) or a mean."""
        if (task, metric) not in self._kinds:
            rate = not metric.startswith(_MEANS) and all(
                value in (0.0, 1.0) for cell in self.cells for value in self.of(cell, task, metric).values()
            )
            self._kinds[task, metric] = "rate" if rate else "mean"
        return self._kinds[task, metric]


def read_outcomes(directory: RunDirectory, *, judge: str | None = None) -> Outcomes:
    """Read the per-prompt values of a run.

    `judge` is the start of a judge's fingerprint, for a run that several judged; by default the judge of the summary.

    Raises:
        RunError: the directory is no run, one of its files is damaged, or there is no verdict by that judge.
    """
    plan = read_plan(directory)
    values: dict[tuple[str, str, str], Values] = {}
    texts: dict[tuple[str, str, Document], str] = {}
    verdicts = _verdicts(directory, judge)
    judged = {(row["cell"], row["task"]) for row in verdicts["verdicts"]} if verdicts else set()
    cells: dict[str, Cell] = {}
    for cell in plan.cells:
        for results in results_of(directory, plan, cell.key):
            cells[cell.key] = cell
            _take(directory, results, cell.key, values, texts, judged)
    if verdicts:
        _take_verdicts(verdicts, texts, values)
    for key, kept in read_divergences(directory).items():
        measured: Values = {number: value for number, value in enumerate(kept.values) if _is_number(value)}
        if measured and key in cells:
            values[key, HARMLESS_TASK, "harmless_kl"] = measured
    return Outcomes(cells, values, verdicts["judge"] if verdicts else None)


def unfiltered(metric: str) -> str:
    """A metric's name without its filter: "exact_match" of "exact_match (strict)"."""
    return metric.partition(" (")[0]


def _take(
    directory: RunDirectory,
    results: Mapping[str, Any],
    cell: str,
    values: dict[tuple[str, str, str], Values],
    texts: dict[tuple[str, str, Document], str],
    judged: set[tuple[str, str]],
) -> None:
    owner = _owners(results)
    for task, samples in results["samples"].items():
        group = owner.get(task)
        for sample in samples:
            document: Document = sample["doc_id"] if group is None else f"{task}/{sample['doc_id']}"
            suffix = "" if sample.get("filter", "none") == "none" else f" ({sample['filter']})"
            for metric in sample.get("metrics", ()):
                value = sample.get(metric)
                if _is_number(value):
                    values.setdefault((cell, group or task, f"{metric}{suffix}"), {})[document] = float(value)
            if (cell, task) in judged:
                texts[cell, task, document] = response_of(directory, task, sample)


def _owners(results: Mapping[str, Any]) -> dict[str, str]:
    """Subtask -> the outermost group that lm-eval aggregated it into."""
    groups = results.get("group_subtasks", {})
    aggregated = [
        group
        for group in groups
        if any("," in key and _is_number(value) for key, value in results["results"].get(group, {}).items())
    ]
    inner = {member for group in aggregated for member in _members(group, groups)}
    return {
        member: group
        for group in aggregated
        if group not in inner
        for member in _members(group, groups)
        if member in results["samples"]
    }


def _members(group: str, groups: Mapping[str, list[str]]) -> list[str]:
    """Members of a group and of the groups in it, each once."""
    found = dict.fromkeys(groups.get(group, ()))
    waiting = list(found)
    while waiting:
        new = [member for member in groups.get(waiting.pop(), ()) if member not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return list(found)


def _verdicts(directory: RunDirectory, judge: str | None) -> dict[str, Any] | None:
    files = [path for path in (directory.path / "judged").glob("*.json") if path.is_file()]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    if judge is not None:
        files = [path for path in files if path.stem.startswith(judge[:12])]
        if not files:
            raise RunError(f"no verdicts by that judge in {directory.path}", got=judge)
    if not files:
        return None
    # The summary names its judge; if it does not, the newest file is taken.
    if judge is None and directory.has("summary.json") and (named := read_summary(directory).judge) is not None:
        files = [path for path in files if path.stem == named] or files
    return read_verdicts(directory, f"judged/{files[-1].name}")


def _take_verdicts(
    document: Mapping[str, Any],
    texts: Mapping[tuple[str, str, Document], str],
    values: dict[tuple[str, str, str], Values],
) -> None:
    """Replace the metrics of the judged tasks by metrics of these verdicts, as the summary does."""
    judged = {(row["cell"], row["task"]) for row in document["verdicts"]}
    stale = ("judge_", "unscored", "n_unscored", "strongreject_", "rating10_", "outcome_evaded")
    for key in [key for key in values if key[:2] in judged and key[2].startswith(stale)]:
        del values[key]
    form = FORMS[document["rubric_version"].partition("/")[0]]
    for row in document["verdicts"]:
        at = (row["cell"], row["task"])
        if (*at, row["doc_id"]) not in texts:
            continue  # the cell's results were removed since
        verdict = JudgeVerdict(row["score"], row["judgements"], row["unscored_because"])
        response = texts[*at, row["doc_id"]]
        metrics = verdict_metrics(verdict, form) | score_response(response, evaded=is_evasion(verdict))
        for metric, value in metrics.items():
            values.setdefault((*at, metric), {})[row["doc_id"]] = value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and abs(value) < LARGEST  # neither NaN nor infinity is
