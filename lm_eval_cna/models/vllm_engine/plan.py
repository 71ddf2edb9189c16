"""What cna-vllm tells the workers, and whether their answers add up to the whole model. Plain data, no vLLM.

A worker sees its own slice only (`vllm_worker`). A partial match would steer part of the model and report it
as the whole, so every answer is checked here: before steering that the workers together own each neuron, after it that
together they steered each neuron that the circuit names.
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
    """What the workers are to do, as lists of numbers.

    Args:
        setting: not a baseline.
        mode: "fold" or "hook".
    """
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
    """Refuse workers that together are not the model.

    Args:
        answers: of `SteeringWorker.cna_describe`.
        architecture: the model as transformers builds it.

    Raises:
        ArchitectureError: the model has experts, a worker does not know it, or the workers' layers and neurons are not
            the model's.
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
    slices = _slices(answers, "owned")
    for layer in range(depth):
        width = architecture.layers[layer].projections[0].width
        if not _tiles(slices.get(layer, set()), width):
            raise ArchitectureError(
                f"the workers own neurons {sorted(slices.get(layer, ()))} of layer {layer}",
                allowed=f"slices that make up the {width} neurons of a layer of {architecture.name}",
            )


def check_steered(answers: Sequence[Answer], plan: Answer) -> None:
    """Refuse a steering that is not all of what was asked; the caller undoes it.

    Args:
        answers: of `SteeringWorker.cna_steer`.
        plan: what they were asked.

    Raises:
        SteeringError: a worker says why it could not, or layers or neurons are missing.
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
    """Decide between fold and hook, one mode for all workers.

    Raises:
        SteeringError: the mode is not possible; the message gives the worker's reason.
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


def _slices(answers: Sequence[Answer], field: str) -> dict[int, set[tuple[int, int]]]:
    """Layer -> the slices of its neurons that workers name; workers with the same slice are replicas."""
    found: dict[int, set[tuple[int, int]]] = {}
    for answer in answers:
        for layer, start, stop in answer[field]:
            found.setdefault(layer, set()).add((start, stop))
    return found


def _tiles(slices: set[tuple[int, int]], width: int) -> bool:
    """Whether slices follow each other without gap or overlap from 0 to the width."""
    end = 0
    for start, stop in sorted(slices):
        if start != end:
            return False
        end = stop
    return end == width
