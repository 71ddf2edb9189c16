"""What cna-vllm sends to its workers, and checks that their answers add up to the whole model. Plain data, no vLLM.

Each worker sees only its slice of the model. Steering a part and reporting it as the whole would be wrong, so the
answers are checked: before steering, that the workers together own each neuron; after it, that they steered each neuron
of the circuit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_cna.errors import ArchitectureError, SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture

Answer = Mapping[str, Any]


def plan_for(setting: Setting, mode: str) -> dict[str, Any]:
    """What the workers must do under a setting that is not the baseline, as plain lists of numbers."""
    intervention = setting.intervention
    if isinstance(intervention, Circuit):
        layers = [[layer, indices] for layer, indices in intervention.by_layer().items()]
        return {"kind": "circuit", "mode": mode, "multiplier": setting.multiplier, "layers": layers}
    assert isinstance(intervention, Vectors)
    return {
        "kind": "vectors",
        "place": intervention.place,
        "strength": setting.strength,
        "layers": [[layer, intervention.tensors[layer].float().tolist()] for layer in intervention.layers],
    }


def check_workers(answers: Sequence[Answer], architecture: Architecture) -> None:
    """Make sure that the workers together hold the whole model, from their answers to `cna_describe`.

    Raises:
        ArchitectureError: the model has experts, a worker does not know its family, or the workers' layers and neurons
            are not the model's.
    """
    if any(layer.has_experts for layer in architecture.layers):
        raise ArchitectureError(f"{architecture.name} has experts, which cna-vllm does not steer", do="use cna-hf")
    for answer in answers:
        if answer["error"] is not None:
            raise ArchitectureError(f"vLLM: {answer['error']}")
    depth = len(architecture.layers)
    found = {answer["num_layers"] for answer in answers}
    if found != {depth}:
        raise ArchitectureError(f"vLLM built {sorted(found)} layers", allowed=f"{depth}, as {architecture.name} has")
    slices: dict[int, set[tuple[int, int]]] = {}  # workers with the same slice are replicas
    for answer in answers:
        for layer, start, stop in answer["owned"]:
            slices.setdefault(layer, set()).add((start, stop))
    for layer in range(depth):
        width = architecture.layers[layer].projections[0].width
        if not _covers(slices.get(layer, set()), width):
            raise ArchitectureError(
                f"the workers own neurons {sorted(slices.get(layer, ()))} of layer {layer}",
                allowed=f"slices that make up the {width} neurons of a layer of {architecture.name}",
            )


def check_steered(answers: Sequence[Answer], plan: Answer) -> None:
    """Make sure that the workers steered all that the plan asks, from their answers to `cna_steer`.

    Raises:
        SteeringError: a worker could not steer, or layers or neurons are missing. The caller undoes what was done.
    """
    for answer in answers:
        if answer["error"] is not None:
            raise SteeringError(f"vLLM: {answer['error']}")
    counts = {(layer, start, stop): count for answer in answers for layer, start, stop, count in answer["touched"]}
    for layer, numbers in plan["layers"]:
        steered = [count for (touched, _, _), count in counts.items() if touched == layer]
        wanted = len(numbers) if plan["kind"] == "circuit" else 0
        if not steered or sum(steered) != wanted:
            raise SteeringError(f"layer {layer}: the workers steered {sum(steered)} neurons", allowed=f"all {wanted}")


def resolve_mode(answers: Sequence[Answer], intervention: Circuit | Vectors, mode: Mode) -> str:
    """Choose fold or hook, one mode for all workers.

    Raises:
        SteeringError: a worker cannot steer in the mode; the message gives its reason.
    """
    not_fold = next((a["why_not_fold"] for a in answers if a["why_not_fold"] is not None), None)
    not_hook = next((a["why_not_hook"] for a in answers if a["why_not_hook"] is not None), None)
    if isinstance(intervention, Vectors):
        not_fold = "vectors are no weights"
    if mode != "hook" and not_fold is None:
        return "fold"
    if mode == "fold":
        raise SteeringError(f"cannot fold: {not_fold}", got=mode, allowed="auto, hook")
    if not_hook is not None:
        also = "" if mode == "hook" or not_fold is None else f", and cannot fold: {not_fold}"
        raise SteeringError(f"cannot hook: {not_hook}{also}", got=mode)
    return "hook"


def _covers(slices: set[tuple[int, int]], width: int) -> bool:
    """Whether the slices follow each other from 0 to `width` without gap or overlap."""
    end = 0
    for start, stop in sorted(slices):
        if start != end:
            return False
        end = stop
    return end == width
