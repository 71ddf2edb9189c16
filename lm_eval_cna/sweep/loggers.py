"""Logs results to W&B, to Trackio, and to lm-eval's own files with their upload to the Hugging Face hub.

lm-eval's loggers run once for each cell, so a cell looks like a stock run; the run is named after the cell. The run
directory remembers what was logged, and a continued sweep does not log it again.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker, TrackioLogger, WandbLogger
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import Plan, read_plan, results_of
from lm_eval_cna.results.summary import Summary, read_summary
from lm_eval_cna.sweep.config import SweepConfig

LOGGED = "logged.json"
_SECRET = {"token"}
#: Fields of lm-eval's results with one entry per task or group; the others are the same in every file of a cell.
_BY_TASK = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


class CellLogs:
    """The loggers that a configuration asks for, checked before anything is computed.

    Args:
        config: of the sweep.

    Raises:
        ConfigError: a library is missing, an argument is not known, or the hub does not know the token.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        for field, package in (("wandb_args", "wandb"), ("trackio_args", "trackio")):
            given = getattr(config, field)
            if given is None:
                continue
            try:
                importlib.import_module(package)
            except Exception as error:  # missing, or installed without something that it needs
                raise ConfigError(
                    f"{field} needs the package {package}: {error}", do=f"pip install {package}"
                ) from error
            if "id" in given:
                raise ConfigError(
                    f"{field}: every cell is a run of its own", got="id", do="leave it out, or give a name"
                )
        if config.wandb_config_args is not None and config.wandb_args is None:
            raise ConfigError("wandb_config_args without wandb_args", do="give --wandb_args project=NAME too")
        self._tracker = None if config.hf_hub_log_args is None else _tracker(config)

    def publish(self, directory: RunDirectory, *, chat_template: str | None = None) -> None:
        """Log every cell that has not been logged there yet.

        Args:
            directory: of a finished sweep.
            chat_template: what prompts were rendered with, for lm-eval's files.

        Raises:
            RunError: a logger failed; everything that was measured is kept, and the same command goes on.
        """
        targets: dict[str, Callable[[str, dict[str, Any], dict[str, Any]], None]] = {}
        if self._config.wandb_args is not None:
            targets["wandb_args"] = self._to_wandb
        if self._config.trackio_args is not None:
            targets["trackio_args"] = self._to_trackio
        if self._tracker is not None:
            targets["hf_hub_log_args"] = self._to_files(self._tracker, chat_template)
        if not targets:
            return
        plan, summary = read_plan(directory), read_summary(directory)
        logged = directory.read_json(LOGGED) if directory.has(LOGGED) else {}
        if not all(isinstance(keys, list) for keys in logged.values()):
            raise RunError(f"{directory.path / LOGGED} is damaged", do="delete it; every cell is logged again then")
        for field, log in targets.items():
            given = {name: value for name, value in getattr(self._config, field).items() if name not in _SECRET}
            done = logged.setdefault(f"{field}:{json_sha256(given)[:12]}", [])
            todo = [cell.key for cell in plan.cells if cell.key not in done]
            for key in todo:
                results, samples = _cell_results(directory, key, plan, summary)
                with _explained(field, key):
                    log(key, results, samples)
                done.append(key)
                directory.write_json(LOGGED, logged)
            pushed = field == "hf_hub_log_args" and self._tracker is not None and _pushes(self._tracker)
            if todo and pushed:
                with _explained(field, "the dataset card"):
                    self._tracker.recreate_metadata_card()  # type: ignore[union-attr]  # `pushed` says so

    def _to_wandb(self, key: str, results: dict[str, Any], samples: dict[str, Any]) -> None:
        logger = WandbLogger(self._named("wandb_args", key), dict(self._config.wandb_config_args or {}))
        try:
            logger.post_init(results)
            logger.log_eval_result()
            logger.log_eval_samples(_complete(results, samples))
        finally:
            logger.run.finish()

    def _to_trackio(self, key: str, results: dict[str, Any], samples: dict[str, Any]) -> None:
        logger = TrackioLogger(self._named("trackio_args", key))
        try:
            logger.post_init(results)
            logger.log_eval_result()
            logger.log_eval_samples(samples)
        finally:
            logger.finish()

    def _to_files(
        self, tracker: EvaluationTracker, chat_template: str | None
    ) -> Callable[[str, dict[str, Any], dict[str, Any]], None]:
        def log(key: str, results: dict[str, Any], samples: dict[str, Any]) -> None:
            tracker.general_config_tracker = GeneralConfigTracker()  # its clock starts when it is made
            tracker.date_id = None  # names the files; set again when they are written
            tracker.general_config_tracker.log_experiment_args(
                model_source=f"cna-{self._config.engine}",
                # The name of the folder: two cells of one model must not share it.
                model_args={"pretrained": f"{self._config.model}__{key}"},
                system_instruction=None,
                chat_template=chat_template,
                fewshot_as_multiturn=chat_template is not None,
            )
            tracker.save_results_aggregated(results=results, samples=samples)
            for task in results["configs"]:
                tracker.save_results_samples(task_name=task, samples=samples[task])
            _check_saved(tracker, {task: samples[task] for task in results["configs"]})

        return log

    def _named(self, field: str, key: str) -> dict[str, Any]:
        """A logger's arguments for one cell: the run is named after the cell, the group after the run directory."""
        given = dict(getattr(self._config, field))
        name = given.pop("name", None)
        return {"group": self._config.output.name, **given, "name": key if name is None else f"{name}-{key}"}


def _tracker(config: SweepConfig) -> EvaluationTracker:
    given = dict(config.hf_hub_log_args or {})
    known = set(inspect.signature(EvaluationTracker).parameters)
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ConfigError("hf_hub_log_args", got=unknown[0], allowed=", ".join(sorted(known)))
    given.setdefault("output_path", str(config.output / "lm-eval"))  # without one, lm-eval uploads nothing
    if os.environ.get("HF_TOKEN"):
        given["token"] = os.environ["HF_TOKEN"]  # as lm-eval's own command does
    try:
        tracker = EvaluationTracker(**given)
    except Exception as error:  # no token, a token that the hub does not know, no network: of many libraries
        raise ConfigError(f"hf_hub_log_args: {error}") from error
    if tracker.api is not None:
        tracker.api = _RememberingApi(tracker.api)
    return tracker


def _pushes(tracker: EvaluationTracker) -> bool:
    return bool(tracker.push_results_to_hub or tracker.push_samples_to_hub)


def _cell_results(
    directory: RunDirectory, key: str, plan: Plan, summary: Summary
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One cell as lm-eval reports a run, and its samples: all evaluation settings, and the judge's verdicts."""
    merged: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for results in results_of(directory, plan, key):  # controls are not asked everything
        samples |= results.pop("samples")
        for field, value in results.items():
            merged[field] = {**merged.get(field, {}), **value} if field in _BY_TASK else merged.get(field, value)
    for row in summary.measured:
        # "metric (filter)" is lm-eval's own already; without a filter there are changes and verdicts besides.
        if row.cell == key and row.task in merged["results"] and not row.metric.endswith(")"):
            merged["results"][row.task][f"{row.metric},none"] = row.value
    return merged, samples


def _complete(results: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
    """Samples with every metric of their task: a document without a verdict has none, and W&B's table wants a cell."""
    filled = {}
    for task, rows in samples.items():
        blank = {metric["metric"]: None for metric in results["configs"][task].get("metric_list") or ()}
        filled[task] = [{**blank, **row} for row in rows]
    return filled


class _RememberingApi:
    """The hub's API, which remembers the first call that failed: lm-eval's tracker swallows what an upload raises."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._api, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                self.failure = self.failure or error
                raise

        return call


def _check_saved(tracker: EvaluationTracker, samples: dict[str, Any]) -> None:
    """Make sure that lm-eval's tracker, which swallows every error, has written a cell's files and uploaded them.

    Raises:
        Exception: what the upload raised.
        OSError: a file is missing or cut short.
    """
    if isinstance(tracker.api, _RememberingApi) and tracker.api.failure is not None:
        failure, tracker.api.failure = tracker.api.failure, None
        raise failure
    output = Path(tracker.output_path)
    in_one_file = output.suffix == ".json"
    folder = output.parent if in_one_file else output / tracker.general_config_tracker.model_name_sanitized
    results = folder / f"{output.stem if in_one_file else 'results'}_{tracker.date_id}.json"
    if not results.is_file() or not results.read_bytes().endswith(b"}"):
        raise OSError(f"lm-eval did not write {results}")
    for task, rows in samples.items():
        path = folder / f"samples_{task}_{tracker.date_id}.jsonl"
        if not path.is_file() or path.read_bytes().count(b"\n") != len(rows):
            raise OSError(f"lm-eval did not write {path}")


@contextmanager
def _explained(field: str, key: str) -> Iterator[None]:
    """Turn whatever a logger raises into one line of ours."""
    try:
        yield
    except Exception as error:  # of libraries that we do not know
        raise RunError(
            f"{field}: cannot log {key}: {type(error).__name__}: {error}",
            do="what was measured is kept; the same command logs what is missing",
        ) from error
