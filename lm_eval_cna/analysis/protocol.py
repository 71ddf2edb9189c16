"""The protocol of a run: what was asked, without the results. Only runs of one protocol can be compared.

It is read from the manifest and from the prompts of the untouched cell, so a default and the same value typed out are
one protocol. Seeds of controls and versions of libraries are no part of it; differing versions cause a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from lm_eval_cna.analysis.outcomes import Outcomes
from lm_eval_cna.errors import RunError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.header import ModelInfo
from lm_eval_cna.results.cells import BASELINE
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import Plan, read_plan, read_results, settings_of

_VERSIONS = ("lm-eval-cna", "lm_eval", "transformers", "torch")
# Some chat templates contain today's date (Llama 3.2: 26 Jul 2024); another date is the same protocol.
_DATE = re.compile(r"\b(\d{1,2} [A-Z][a-z]{2,8} \d{4}|\d{4}-\d{2}-\d{2})\b")
_GENERATION = ("generation_kwargs", "output_type", "repeats", "description", "fewshot_config", "filter_list")


class TaskSettings(AnalysisRecord):
    """Settings of a task, as in `sweep.config.TaskSpec`."""

    task: str
    num_fewshot: int | None = None
    chat_template: bool | None = None
    controls: bool | None = None


class Questions(AnalysisRecord):
    """What one task, or one subtask of a group, asked."""

    n: int
    """Documents."""
    documents: str
    """Hash of the documents as the data set has them, the same for every model."""
    prompts: str
    """Hash of the prompts as the model got them, with chat template but without dates."""
    settings: str
    """Hash of the task's version, number of shots and generation settings."""


class Protocol(AnalysisRecord):
    """The protocol of a run."""

    model: str
    """Name of the model; of a path only the last part."""
    architecture: str
    """Class, layers and width."""
    weights: str | None
    """Hash of the weights, if known; not compared."""
    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    multipliers: tuple[float, ...]
    """Methods, circuit sizes and multipliers of the cells, controls included."""
    random: int
    """Number of seeds of each kind of control."""
    control_multipliers: tuple[float, ...]
    """Multipliers of the controls."""
    match: str
    scale: float
    limit: int | None
    """As in the sweep's configuration."""
    tasks: tuple[TaskSettings, ...]
    """Settings of the tasks."""
    questions: dict[str, Questions]
    """Task or subtask -> what was asked."""
    circuit: dict[str, str]
    """How the circuit was found, if the run has one: contrast set, size, layers, filter."""
    judge: str | None
    """Fingerprint of the judge, if there is one."""
    versions: dict[str, str]
    """Versions of the libraries; not compared, but named in cautions."""


#: Fields that a run must share with its baseline. The circuit may differ: the check is about it.
OF_A_CHECK = tuple(name for name in Protocol.model_fields if name not in ("weights", "circuit", "versions"))
#: Fields that runs must share to be ranked together. Models and their chat templates may differ.
OF_A_RANKING = (
    *(name for name in OF_A_CHECK if name not in ("model", "architecture", "methods", "sizes")),
    "circuit",
)


def read_protocol(directory: RunDirectory, outcomes: Outcomes) -> Protocol:
    """The protocol of a finished run; its outcomes name the judge.

    Raises:
        RunError: the directory is no finished run, or one of its files is damaged.
    """
    manifest, checked = directory.manifest(), read_plan(directory)
    plan = manifest["plan"]
    try:
        cells = [cell for cell in checked.cells if cell.method != BASELINE.method]
        controls = [cell for cell in cells if cell.seed is not None]
        shape = manifest["architecture"]
        return Protocol(
            model=model_name(str(plan["model"])),
            architecture=f"{shape['name']}, {_shape(shape)}",
            weights=plan.get("weights_sha256"),
            methods=tuple(sorted({cell.method for cell in cells})),
            sizes=tuple(sorted({cell.size for cell in cells if cell.size is not None})),
            multipliers=tuple(sorted({cell.multiplier for cell in cells} | {1.0})),
            random=len({cell.seed for cell in controls}),
            control_multipliers=tuple(sorted({cell.multiplier for cell in controls})),
            match=plan.get("match", "layer"),
            scale=plan.get("scale", 1.0),
            limit=plan.get("limit"),
            tasks=tuple(TaskSettings.model_validate(task) for task in plan.get("tasks", ())),
            questions=dict(_questions(directory, checked)),
            circuit=_circuit(directory),
            judge=None if outcomes.judge is None else outcomes.judge.get("fingerprint"),
            versions={name: str(said) for name, said in manifest.get("machine", {}).items() if name in _VERSIONS},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{directory.path} is damaged: {first}", do="run the sweep again") from error


def model_name(model: str) -> str:
    """A model's name on the hub, or the last part of a path."""
    local = model.startswith(("/", ".", "~"))
    return PurePosixPath(model).name if local else model


def differences(one: Protocol, other: Protocol, fields: Iterable[str], *, names: tuple[str, str]) -> list[str]:
    """Say in which fields two protocols differ, one clause per field; the clauses call the two by `names`."""
    found = []
    for field in fields:
        if field == "circuit" and not (one.circuit and other.circuit):
            continue  # a run of vectors has none
        if field == "questions":
            found += _differing_questions(one, other, rendered="model" in fields, names=names)
        elif getattr(one, field) != getattr(other, field):
            said = [_shown(getattr(protocol, field)) for protocol in (one, other)]
            found.append(f"{field.replace('_', ' ')}: {said[0]} in {names[0]}, {said[1]} in {names[1]}")
    return found


def cautions(one: Protocol, other: Protocol, *, names: tuple[str, str]) -> list[str]:
    """Differences that leave the protocol the same but may explain other numbers: library versions and weights."""
    found = []
    if one.model == other.model and one.weights != other.weights:
        found.append(f"the weights of {one.model} are not the same in {names[0]} and {names[1]}")
    for name in dict.fromkeys([*one.versions, *other.versions]):
        said = [protocol.versions.get(name, "unknown") for protocol in (one, other)]
        if said[0] != said[1]:
            found.append(f"{name} is {said[0]} in {names[0]} and {said[1]} in {names[1]}")
    return found


def _differing_questions(one: Protocol, other: Protocol, *, rendered: bool, names: tuple[str, str]) -> list[str]:
    tasks = [sorted(protocol.questions) for protocol in (one, other)]
    if tasks[0] != tasks[1]:
        return [f"tasks: {_shown(tasks[0])} in {names[0]}, {_shown(tasks[1])} in {names[1]}"]
    found = []
    for task, asked in one.questions.items():
        also = other.questions[task]
        if asked.n != also.n:
            found.append(f"documents of {task}: {asked.n} in {names[0]}, {also.n} in {names[1]}")
        elif asked.documents != also.documents:
            found.append(
                f"documents of {task}: {asked.documents[:12]} in {names[0]}, {also.documents[:12]} in {names[1]}"
            )
        elif asked.settings != also.settings:
            found.append(f"version or generation settings of {task}")
        elif rendered and asked.prompts != also.prompts:
            found.append(
                f"prompts of {task} as the model was asked: {asked.prompts[:12]} in {names[0]}, "
                f"{also.prompts[:12]} in {names[1]}"
            )
    return found


def _questions(directory: RunDirectory, plan: Plan) -> Iterable[tuple[str, Questions]]:
    for setting in settings_of(directory, plan, BASELINE.key):
        results = read_results(directory, directory.results_name(BASELINE.key, setting))
        for task, samples in results["samples"].items():
            # A task with several filters has a sample a filter for each document.
            asked = {sample["doc_id"]: (sample["doc"], sample["arguments"]) for sample in samples}
            numbers = sorted(asked)
            config = results.get("configs", {}).get(task, {})
            settings = {
                **{name: config.get(name) for name in _GENERATION},
                "version": results.get("versions", {}).get(task),
                "shots": results.get("n-shot", {}).get(task),
            }
            yield (
                task,
                Questions(
                    n=len(numbers),
                    documents=json_sha256([asked[number][0] for number in numbers]),
                    prompts=json_sha256(_undated([asked[number][1] for number in numbers])),
                    settings=json_sha256(settings),
                ),
            )


def _undated(value: Any) -> Any:
    if isinstance(value, str):
        return _DATE.sub("(date)", value)
    return [_undated(item) for item in value] if isinstance(value, list) else value


def _shape(manifest: Mapping[str, Any]) -> str:
    """Layers and neurons of a manifest in words."""
    named = {field: manifest.get(field) for field in ("num_layers", "mlp_width", "experts")}
    return str(ModelInfo.model_validate(named).shape)


def _circuit(directory: RunDirectory) -> dict[str, str]:
    if not directory.has("circuit.json"):
        return {}
    found = directory.read_json("circuit.json").get("discovery") or {}
    fraction = found.get("fraction")
    facts = {
        "contrast": found.get("contrast_sha256") or found.get("contrast"),
        "size": f"{fraction:g} of the neurons" if fraction is not None else f"{found.get('top_k')} neurons",
        "excluded layers": found.get("excluded_layers") or None,
        "universal filter": "yes" if found.get("universal_filter") else "no",
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {said}" for name, said in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_shown(item) for item in value) or "none"
        return shown if len(shown) <= 200 else f"{shown[:200]}..."
    if isinstance(value, TaskSettings):
        settings = value.model_dump(exclude={"task"}, exclude_none=True)
        return f"{value.task} ({_shown(settings)})" if settings else value.task
    return f"{value:g}" if isinstance(value, float) else str(value)
