"""Reads a run directory's files, which may come from elsewhere, and checks what readers rely on. Without torch.

The rest of a file belongs to lm-eval and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.records import first_error
from lm_eval_cna.interventions.header import ExpertsInfo, ModelInfo
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.results.directory import HARMLESS_KL, RunDirectory
from lm_eval_cna.scoring.strongreject import FORMS

_Word = Annotated[str, Field(min_length=1, max_length=100)]
# Becomes a file's name as it is; `Cell.key` makes one out of a cell's method.
_Setting = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class _FilePart(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


_Kind = TypeVar("_Kind", bound=_FilePart)


class _PlannedCell(_FilePart):
    method: _Word
    multiplier: Annotated[float, Field(allow_inf_nan=False)]
    seed: _Count | None
    size: _Count | None


class Plan(_FilePart):
    """The part of a manifest's plan that readers use."""

    model: str
    """Name or path, as it was given."""
    contrast: str
    """The contrast set that a sweep without a given circuit discovers from."""
    random: int
    """Number of control seeds."""
    match: str
    """What random neurons are matched by."""
    planned: Annotated[tuple[_PlannedCell, ...], Field(alias="cells", strict=False)]
    """The cells, as the file has them."""
    settings: Annotated[tuple[_Setting, ...], Field(strict=False)] = ()
    """Names of the evaluation settings; older manifests have none."""
    judged: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Tasks whose responses a judge grades."""
    interventions: dict[str, str] = {}
    """Hash of every intervention, by the name of its file."""
    rows: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Generated answers in a batch."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of the sweep, in its order."""
        return tuple(Cell(cell.method, cell.multiplier, cell.seed, cell.size) for cell in self.planned)


class ManifestArchitecture(_FilePart):
    """The model of a sweep, in numbers."""

    name: str
    """Name of its class in transformers."""
    num_layers: int
    mlp_width: int | None
    """Neurons in each layer; None for a model with experts."""
    experts: ExpertsInfo | None = None
    """The layers with experts, if the model has any."""
    dtype: str

    @property
    def shape(self) -> str:
        """Layers and neurons in words."""
        if self.experts is None:
            return f"{self.num_layers} layers with {self.mlp_width} neurons each"
        found = ModelInfo(num_layers=self.num_layers, mlp_width=self.mlp_width, experts=self.experts).shape
        assert found is not None
        return found


class Manifest(_FilePart):
    """The part of a manifest that readers use."""

    plan: Plan
    architecture: ManifestArchitecture
    command: Annotated[tuple[str, ...], Field(strict=False)]
    """What the user typed."""
    machine: dict[str, Any] = {}
    """Platform and versions."""


class _Sample(_FilePart):
    doc_id: int
    filter: str = "none"
    metrics: list[str] = []
    resps: Annotated[list[Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]


class _SteeringConfig(_FilePart):
    generated: dict[str, _Count] = {}


class _ResultsConfig(_FilePart):
    cna: _SteeringConfig | None = None


class _Results(_FilePart):
    results: dict[str, dict[str, Any]]
    samples: dict[str, list[_Sample]]
    configs: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {}
    group_subtasks: dict[str, list[str]] = {}
    shots: dict[str, Any] = Field(default={}, alias="n-shot")
    counted: dict[str, dict[str, _Count | None]] = Field(default={}, alias="n-samples")
    config: _ResultsConfig | None = None


class StoredDivergence(_FilePart):
    """First-token divergence of one cell on harmless prompts, in nats; None where it is not a finite number."""

    values: list[float | None]
    mean: float | None
    p95: float | None


class _StoredVerdict(_FilePart):
    cell: str
    task: str
    doc_id: int
    score: Annotated[float, Field(ge=0, le=1)] | None
    judgements: dict[str, _Count]
    unscored_because: str | None


class _JudgedFile(_FilePart):
    judge: dict[str, Any]
    rubric_version: Annotated[str, Field(pattern=rf"^({'|'.join(FORMS)})/")]
    verdicts: list[_StoredVerdict]


def read_manifest(directory: RunDirectory) -> Manifest:
    """The manifest of a sweep.

    Raises:
        RunError: it is missing or damaged.
    """
    return _checked(directory, "manifest.json", Manifest, directory.manifest(), "")


def read_plan(directory: RunDirectory) -> Plan:
    """The plan of a sweep.

    Raises:
        RunError: the manifest is missing or damaged.
    """
    return read_manifest(directory).plan


def settings_of(directory: RunDirectory, plan: Plan, cell: str) -> tuple[str, ...]:
    """Names of the evaluation settings that a cell may have results for."""
    found = (path.stem for path in (directory.path / "cells" / cell).glob("*.json"))
    return plan.settings or tuple(sorted(found))


def results_of(directory: RunDirectory, plan: Plan, cell: str) -> Iterator[dict[str, Any]]:
    """The results files of a cell, one for each evaluation setting.

    Raises:
        RunError: one is damaged.
    """
    for setting in settings_of(directory, plan, cell):
        name = directory.results_name(cell, setting)
        if directory.has(name):
            yield read_results(directory, name)


def read_results(directory: RunDirectory, name: str) -> dict[str, Any]:
    """lm-eval's results of a cell, with samples.

    Raises:
        RunError: the file is missing or damaged.
    """
    document = directory.read_json(name)
    _checked(directory, name, _Results, document, "")
    return document


def response_of(directory: RunDirectory, task: str, sample: Mapping[str, Any]) -> str:
    """The text of a judged task's sample.

    Raises:
        RunError: its response is no text.
    """
    response = sample["resps"][0][0]
    if not isinstance(response, str):
        raise RunError(f"a response of {task} in {directory.path} is no text", got=response, do="run the sweep again")
    return response


def read_divergences(directory: RunDirectory) -> dict[str, StoredDivergence]:
    """First-token divergence by cell; empty where the run measured none.

    Raises:
        RunError: the file is damaged.
    """
    if not directory.has(HARMLESS_KL):
        return {}
    document = directory.read_json(HARMLESS_KL)
    return {key: _checked(directory, HARMLESS_KL, StoredDivergence, entry, key) for key, entry in document.items()}


def read_verdicts(directory: RunDirectory, name: str) -> dict[str, Any]:
    """What a judge said about a run.

    Raises:
        RunError: the file is missing or damaged.
    """
    document = directory.read_json(name)
    _checked(directory, name, _JudgedFile, document, "")
    return document


def check_hash(directory: RunDirectory, plan: Plan, name: str, sha256: str) -> None:
    """Refuse an intervention whose hash is not the one in the manifest, wherever it was read from.

    Raises:
        RunError: the hashes differ.
    """
    named = plan.interventions.get(name, sha256)
    if named != sha256:
        raise RunError(
            f"{name} is not what the sweep in {directory.path} steers with",
            got=sha256,
            allowed=f"{named}, as its manifest says",
            do="put the file back, name the revision that it was begun with, or choose another --output",
        )


def _checked(directory: RunDirectory, name: str, kind: type[_Kind], value: Any, at: str) -> _Kind:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = first_error(error)
        raise RunError(
            f"{directory.path / name} is damaged: {at}{'.' if at and first.field else ''}{first}",
            got=first.got,
            do="delete it and run the sweep again",
        ) from error
