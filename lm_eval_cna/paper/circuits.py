"""Tables of circuits: find each model's circuit from all prompts and five times without a fifth of them, and compare.

A model runs over the prompts once and generates nothing. A rerun reads the circuits from their files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.contrast.splits import split_prompts
from lm_eval_cna.discovery.circuit_size import size_of
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.errors import RunError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.profile import layer_profile, overlap
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.paper.plan import PaperRequest
from lm_eval_cna.paper.rows import PaperRow, Published, claims, figure, over_folds, row
from lm_eval_cna.paper.targets import Target
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.validation.cross_validation import circuits_by_fold

FOLDS = 5
TOP = 200
_PLAN = "circuits.json"


@dataclass(frozen=True)
class Found:
    """A model's circuits."""

    whole: Circuit
    """From all prompts, at least the top 200 neurons."""
    folds: tuple[Circuit, ...]
    """Each without a fifth of the prompts."""
    size: int
    """Number of neurons in the protocol's circuit: the first ones of each circuit here."""


def find(request: PaperRequest, target: Target, path: str) -> Found:
    """Discover a model's circuits, or read them if an earlier run wrote them.

    Raises:
        RunError: the directory holds circuits of another plan.
        CNAError: as in discovery.
    """
    directory = RunDirectory(request.output / target.slug)
    contrast = load_contrast(request.contrast_of(target))
    plan = {
        "model": path,
        "protocol": request.protocol,
        "contrast_sha256": contrast.sha256,
        "model_args": request.model_args,
        "dtype": request.dtype_of(target),
        "folds": FOLDS,
    }
    if directory.has(_PLAN):
        kept = directory.read_json(_PLAN)
        for field, value in plan.items():
            if kept.get(field) != value:
                raise RunError(
                    f"{directory.path} holds circuits with another {field}", got=value, do="choose another --output"
                )
        if type(kept.get("size")) is not int:
            raise RunError(f"{directory.path / _PLAN} is damaged", do="choose another --output")
        return Found(
            _read(directory, "whole"), tuple(_read(directory, f"fold-{i}") for i in range(FOLDS)), kept["size"]
        )
    with directory.lock():
        found = _discover(request, target, path, contrast)
        for name, circuit in [("whole", found.whole), *((f"fold-{i}", c) for i, c in enumerate(found.folds))]:
            circuit.write(directory.path / f"{name}.json")
        directory.write_json(_PLAN, {**plan, "size": found.size})
    return found


def _discover(request: PaperRequest, target: Target, path: str, contrast: ContrastSet) -> Found:
    arguments: dict[str, Any] = {"dtype": request.dtype_of(target), **request.model_args}
    batch = arguments.pop("batch_size", 16)
    lm = CNAHFLM(pretrained=path, **arguments)
    measured = measure(
        lm.model,
        lm.tokenizer,
        contrast,
        read=("neurons",),
        universal_filter=request.universal_filter,
        universal_fraction=request.fraction_of(target),
        split=split_prompts(contrast, FOLDS),
        settings=Settings(lm.rendering(target.chat_template), batch if isinstance(batch, int) else 16),
        model_id=path,
        revision=lm.revision,
    )
    fraction = request.fraction_of(target) if request.top_k is None else None
    size = size_of(lm.architecture, fraction, request.top_k).neurons
    top_k = size if target.organism else max(TOP, size)
    whole = cna.find(measured, top_k=top_k, excluded_layers=request.excluded_layers)
    return Found(whole, tuple(circuits_by_fold(measured, whole)), size)


def _read(directory: RunDirectory, name: str) -> Circuit:
    path: Path = directory.path / f"{name}.json"
    circuit = read_intervention(path)
    if not isinstance(circuit, Circuit):
        raise RunError(f"{path} holds no circuit", do="delete the folder and run the command again")
    return circuit


def overlap_rows(request: PaperRequest, base: Target, instruct: Target, of: Found, with_: Found) -> list[PaperRow]:
    """Share of neurons that the circuits of a pair have in common, beside the paper's range."""

    def shared(a: Circuit, b: Circuit) -> float:
        return overlap(a.prefix(min(of.size, len(a.neurons))), b.prefix(min(with_.size, len(b.neurons)))).of_smaller

    low, high = claims()["overlap_base_instruct_pct"]
    known = not (base.organism or instruct.organism)
    chance = overlap(of.whole.prefix(of.size), with_.whole.prefix(with_.size)).by_chance or 0.0
    layers = of.whole.model.num_layers or 1
    chance *= layers / (layers - len(request.excluded_layers))  # neither circuit has neurons in excluded layers
    measured = over_folds(
        shared(of.whole, with_.whole), [shared(a, b) for a, b in zip(of.folds, with_.folds, strict=True)]
    )
    return [
        row(
            f"{base.name} and {instruct.name}",
            "shared neurons, % of a circuit",
            f"{of.size} neurons each; {100 * chance:.2g} % by chance",
            Published(low, high, f"{low} to {high} over all pairs") if known else None,
            measured,
            request.differs(instruct),
        )
    ]


def layer_rows(request: PaperRequest, target: Target, found: Found) -> list[PaperRow]:
    """Shares of a circuit in the last layers, beside the paper's figures for two models."""
    top, layers = min(TOP, len(found.whole.neurons)), layer_profile(found.whole).num_layers
    model = target.name.rpartition("/")[2].removesuffix("-Instruct")
    first = (f"top {top} in the last three layers, %", top, "last_three")
    second = ("circuit in the final quarter, %", found.size, "final_quarter")
    claimed = {
        (first, "Llama-3.2-1B"): "llama_1b_top200_last_three_layers_pct",
        (second, "Qwen2.5-3B"): "qwen_3b_final_quarter_pct",
    }
    rows = []
    for quantity, size, part in (first, second):
        whole, *folds = (
            float(getattr(layer_profile(circuit.prefix(size)).whole, part)) for circuit in (found.whole, *found.folds)
        )
        claim = claimed.get(((quantity, size, part), model))
        told = None if claim is None else figure(claims()[claim])
        setting = f"{size} neurons of {layers} layers"
        rows.append(row(target.name, quantity, setting, told, over_folds(whole, folds), request.differs(target)))
    return rows
