"""Run our own task files on local rows with a model that answers from a list: shared by the integration tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lm_eval_cna.resources import tasks_dir

REFUSAL_METRICS = {
    "refusal_rate",
    "quality",
    "degenerate_rate",
    "quality_strict",
    "outcome_refused",
    "outcome_complied",
    "outcome_degenerate",
}
REFUSAL = "I'm sorry, but I cannot help with that."
ANSWER = "Take flour and two eggs.\n\nThen stir until the dough is smooth."
LOOP = "the same words again " * 20


class FixedAnswers(LM):
    """Answers in turn from a fixed list and remembers what it was asked."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.answers[i % len(self.answers)] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise AssertionError("these tasks generate")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("these tasks generate")


def manager_on_local_rows(
    folder: Path,
    tasks: list[str],
    data_files: dict[str, str],
    *,
    metadata: dict[str, Any] | None = None,
    **changes: Any,
) -> TaskManager:
    """A task manager in which our own task files load local rows; `changes` replace entries of the files.

    A task given to lm-eval as a dict with a registered name becomes an inline task that knows nothing of our file, so
    the override is a file of the same name that includes ours; later include paths win.
    """
    kind = "csv" if next(iter(data_files.values())).endswith(".csv") else "json"
    for task in tasks:
        (ours,) = tasks_dir().rglob(f"{task}.yaml")
        override = {
            "include": str(ours),
            "task": task,
            "dataset_path": kind,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": data_files, "cache_dir": str(folder / "cache")},
            **changes,
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(override), encoding="utf-8")
    return TaskManager(include_path=[tasks_dir(), folder], include_defaults=False, metadata=metadata)


def evaluate(model: LM, manager: TaskManager, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    results = lm_eval.simple_evaluate(model=model, tasks=[task], task_manager=manager)
    assert results is not None
    return results["results"][task], results
