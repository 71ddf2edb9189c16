"""How circuits lie on disk: JSON documents, and the reference repository's. Plain data in and out.

Floor 1. Without experts a circuit is written in schema `circuit/1`. A mixture of experts takes `circuit/2`, which adds
`expert` to every neuron (a routed expert's number, "shared", or null in a dense layer), names universal neurons of
expert layers as [layer, expert, index], and describes the experts in the model's header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.checksum import BrokenSealError, sealed, unsealed
from lm_eval_cna.transformer.neurons import Neuron

CIRCUIT_SCHEMA: Literal["lm-eval-cna/circuit/1"] = "lm-eval-cna/circuit/1"
EXPERTS_SCHEMA: Literal["lm-eval-cna/circuit/2"] = "lm-eval-cna/circuit/2"
_SCHEMAS = (CIRCUIT_SCHEMA, EXPERTS_SCHEMA)
MOST_NEURONS = 1_000_000  # ten times a thousandth of the largest models' neurons; more is a mistake or an attack
_MAX_BYTES = 128 * 2**20
_MOST_COMMAS = 4 * MOST_NEURONS + 10_000  # four a neuron, and the header's


def circuit_document(header: dict[str, Any], neurons: Iterable[Neuron]) -> bytes:
    """One JSON document, a line a neuron, with its seal.

    Args:
        header: everything but the neurons, the schema under "schema".
        neurons: in the circuit's order.
    """
    header = {"schema": header.pop("schema"), "method": header.pop("method"), **header}
    keys = _keys(header["schema"])
    opened = json.dumps(header, indent=1, allow_nan=False).removesuffix("\n}")
    entries = (json.dumps({key: getattr(neuron, key) for key in keys}, allow_nan=False) for neuron in neurons)
    listed = ",\n  ".join(entries)
    return sealed(f'{opened},\n "neurons": [\n  {listed}\n ]\n}}\n')


def read_circuit_fields(path: Path) -> dict[str, Any]:
    """The fields of a circuit, unchecked but for the schema.

    Raises:
        InterventionError: the file is no JSON document of a known schema, or was changed since it was written.
        OSError: it cannot be read.
    """
    try:
        raw = read_whole(path, limit=_MAX_BYTES)
        if (
            raw.count(b",") > _MOST_COMMAS or raw.count(b"[") > MOST_NEURONS
        ):  # before they are objects, which take ten times the file's size
            raise InterventionError(f"{path} holds too many neurons", allowed=f"up to {MOST_NEURONS:,}")
        document, _ = unsealed(raw)
    except BrokenSealError as error:
        raise InterventionError(f"{path} is damaged: {error}", do="make it again") from error
    except ValueError as error:
        raise InterventionError(f"{path} is not JSON: {error}", do="was it cut short?") from error
    if not isinstance(document, dict) or "schema" not in document:
        if isinstance(document, dict) and document and all(key.count(",") == 2 for key in document):
            return _from_reference(path, document)
        raise InterventionError(
            f"{path} has no schema", allowed=f"{' or '.join(_SCHEMAS)}, or the reference repository's circuits"
        )
    if document["schema"] not in _SCHEMAS:
        raise InterventionError(f"{path} has another schema", got=document["schema"], allowed=" or ".join(_SCHEMAS))
    return document


def neurons_of(entries: list[Any], schema: Any) -> list[Any]:
    """Neurons from a document's objects; what is no object is left for the caller to judge.

    Raises:
        ValueError: an object has other keys than the schema's.
    """
    keys = _keys(schema)
    needed = set(keys) - {"delta"}
    neurons: list[Any] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, dict) and (needed - entry.keys() or entry.keys() - set(keys)):
            raise ValueError(f"neurons.{position} must have the keys {', '.join(keys)}; got {sorted(entry)}")
        neurons.append(Neuron(**entry) if isinstance(entry, dict) else entry)
    return neurons


def _keys(schema: Any) -> tuple[str, ...]:
    return ("layer", "expert", "index", "delta") if schema == EXPERTS_SCHEMA else ("layer", "index", "delta")


def _from_reference(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Read `{"layer,position,neuron": value}`, keeping the largest value of a neuron named at several positions."""
    deltas: dict[tuple[int, int], float] = {}
    for key, value in document.items():
        try:
            layer, _, index = (int(part) for part in key.split(","))
            value = float(value)
            if not math.isfinite(value):  # NaN is larger and smaller than nothing: its neuron would be lost
                raise ValueError("not a finite number")
        except (TypeError, ValueError, OverflowError) as error:
            raise InterventionError(
                f"{path} is not a reference circuit", got={key: value}, allowed='"layer,position,neuron": finite number'
            ) from error
        if abs(value) >= abs(deltas.get((layer, index), 0.0)):
            deltas[layer, index] = value
    ranked = sorted(deltas.items(), key=lambda item: (-abs(item[1]), item[0]))
    neurons = tuple(Neuron(layer, index, delta) for (layer, index), delta in ranked)
    return {"method": "cna", "name": path.stem, "neurons": neurons}
