"""What was asked of a model, apart from what came out: only runs of one protocol can be held against each other.

A protocol is read from the manifest and from the questions of the untouched cell, not from what the user typed, so a
default and the same value typed out are one protocol. Seeds of controls are left out: other seeds are the same
protocol. Versions of libraries are no part of it either; they are compared with a warning.
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
# Some chat templates write today's date (Llama 3.2: 26 Jul 2024), which is no other protocol.
_DATE = re.compile(r"\b(\d{1,2} [A-Z][a-z]{2,8} \d{4}|\d{4}-\d{2}-\d{2})\b")
_GENERATION = ("generation_kwargs", "output_type", "repeats", "description", "fewshot_config", "filter_list")


class TaskSettings(AnalysisRecord):
    """How a task was asked for, as in `sweep.config.TaskSpec`."""

    task: str
    num_fewshot: int | None = None
    chat_template: bool | None = None
    controls: bool | None = None


class Questions(AnalysisRecord):
    """What one task, or one part of a group, asked."""

    n: int
    """Documents."""
    documents: str
    """Hash of them as the data set has them, the same for every model."""
    prompts: str
    """Hash of what the model was asked, template included; dates are left out."""
    settings: str
    """Hash of the task's version, shots and settings of generation."""


class Protocol(AnalysisRecord):
    """The protocol of a run."""

    model: str
    """Its name; of a path the last part, since checkouts stand in different places."""
    architecture: str
    """Class, layers and width."""
    weights: str | None
    """Hash of its weights, where known; no part of the protocol."""
    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    multipliers: tuple[float, ...]
    """Of the cells, controls included."""
    random: int
    """Control seeds of each kind of control."""
    control_multipliers: tuple[float, ...]
    """What they were asked at."""
    match: str
    scale: float
    limit: int | None
    """As in the sweep's configuration."""
    tasks: tuple[TaskSettings, ...]
    """As they were asked for."""
    questions: dict[str, Questions]
    """Task or part of a group -> what was asked."""
    circuit: dict[str, str]
    """How the circuit was found, where the run has one: contrast set, size, layers, filter."""
    judge: str | None
    """Fingerprint of the judge, where there is one."""
    versions: dict[str, str]
    """Of the libraries; no part of the protocol."""


#: Fields that a run must share with the baseline that it is checked against; the circuit is what is checked.
OF_A_CHECK = tuple(name for name in Protocol.model_fields if name not in ("weights", "circuit", "versions"))
#: Fields that runs must share to be ranked together. Models differ, and so do their templates.
OF_A_RANKING = (
    *(name for name in OF_A_CHECK if name not in ("model", "architecture", "methods", "sizes")),
    "circuit",
)


def read_protocol(directory: RunDirectory, outcomes: Outcomes) -> Protocol:
    """The protocol of a finished run.

    Args:
        directory: of a sweep.
        outcomes: of the same run, for its judge.

    Raises:
        RunError: the directory is no finished run, or a file of it is damaged.
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
    """A model's name on the hub as it is, of a path its last part."""
    local = model.startswith(("/", ".", "~"))
    return PurePosixPath(model).name if local else model


def differences(one: Protocol, other: Protocol, fields: Iterable[str], *, names: tuple[str, str]) -> list[str]:
    """Say in which fields two protocols differ, one sentence part a field.

    Args:
        one: a protocol.
        other: another.
        fields: what to compare.
        names: what to call the two.
    """
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
    """What is no other protocol and yet may be why numbers differ: versions of libraries, and weights of one model."""
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
    """A manifest's layers and neurons in words."""
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
