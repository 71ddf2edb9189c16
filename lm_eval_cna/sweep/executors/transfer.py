"""Packs what goes to a worker elsewhere, and what comes back, as plain values and bytes.

Interventions go as the bytes of their files, and the code that reads a user's file reads them. Their hashes, and then
the fingerprint of every cell, must be those of the sweep. No path is sent: a worker needs the model and no folder of
the sweep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.results.responses import Response
from lm_eval_cna.sweep.batches import Batch, Request
from lm_eval_cna.sweep.config import LOG_FIELDS
from lm_eval_cna.sweep.interventions import Interventions
from lm_eval_cna.sweep.prepare import PreparedSweep

#: Packages whose version can change an answer; a worker with another version is refused.
_DECIDING = ("lm-eval-cna", "lm_eval", "torch", "transformers")


def pack_sweep(prepared: PreparedSweep) -> dict[str, Any]:
    """Everything that a worker must know before it can compute batches."""
    return {
        # Neither the judge nor loggers: they may hold a key.
        "config": prepared.config.model_dump(mode="json", exclude={"judge", *LOG_FIELDS}),
        "mode": prepared.plan.mode,
        "cells": [cell._asdict() for cell in prepared.plan.cells],
        "modes": list(prepared.plan.modes),
        "contexts": list(prepared.plan.contexts),
        "interventions": _pack_interventions(prepared.interventions),
        "versions": versions(),
    }


def unpack_interventions(packed_sweep: Mapping[str, Any]) -> Interventions:
    """The interventions of a packed sweep.

    Raises:
        InterventionError: a file was damaged in transfer.
    """
    found: dict[str, Circuit | Vectors] = {}
    controls: dict[tuple[str, int], Circuit | Vectors] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, entry in enumerate(packed_sweep["interventions"]):
            path = Path(folder) / f"{number}{entry['suffix']}"
            path.write_bytes(entry["bytes"])
            intervention = read_intervention(path)
            if intervention.sha256 != entry["sha256"]:
                raise InterventionError(
                    f"{intervention.name} is not what was sent", got=intervention.sha256, allowed=entry["sha256"]
                )
            if entry["seed"] is None:
                found[entry["method"]] = intervention
            else:
                controls[entry["method"], entry["seed"]] = intervention
    return Interventions(found, controls, packed_sweep["config"]["scale"])


def _pack_interventions(interventions: Interventions) -> list[dict[str, Any]]:
    named: list[tuple[str, int | None, Circuit | Vectors]] = [
        (method, None, found) for method, found in interventions.found.items()
    ]
    named += [(method, seed, drawn) for (method, seed), drawn in interventions.controls.items()]
    packed = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (method, seed, intervention) in enumerate(named):
            suffix = ".json" if isinstance(intervention, Circuit) else ".safetensors"
            path = Path(folder) / f"{number}{suffix}"
            intervention.write(path)
            packed.append(
                {
                    "method": method,
                    "seed": seed,
                    "suffix": suffix,
                    "sha256": intervention.sha256,
                    "bytes": path.read_bytes(),
                }
            )
    return packed


def versions() -> dict[str, str]:
    """Versions that must be the same everywhere, without the label of a build (torch's +cpu and +cu130)."""
    return {name: version(name).partition("+")[0] for name in _DECIDING}


def pack_batch(batch: Batch) -> dict[str, Any]:
    """A batch as plain values, each request once."""
    places = {request: place for place, request in enumerate(batch.requests)}
    return {
        "kind": batch.kind,
        "requests": [[r.kind, r.arguments, r.key, r.task, r.document] for r in batch.requests],
        "rows": [[cell, places[request]] for cell, request in batch.rows],
    }


def unpack_batch(packed: Mapping[str, Any]) -> Batch:
    """The batch that was packed."""
    requests = [Request(kind, tuple(arguments), *rest) for kind, arguments, *rest in packed["requests"]]
    return Batch(packed["kind"], tuple((cell, requests[place]) for cell, place in packed["rows"]))


def pack_responses(responses: Sequence[Response]) -> list[list[Any]]:
    """Responses as plain values."""
    return [[response.value, response.tokens, response.near_ties] for response in responses]


def unpack_responses(packed: Sequence[Sequence[Any]]) -> list[Response]:
    """The responses that were packed."""
    return [
        Response(tuple(value) if isinstance(value, list) else value, tokens, near_ties)
        for value, tokens, near_ties in packed
    ]
