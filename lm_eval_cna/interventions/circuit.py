"""Circuits and their JSON files (docs/formats.md describes the format). Importable without torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.checksum import ChecksumError, with_checksum, without_checksum
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.interventions.header import Intervention, write_intervention
from lm_eval_cna.interventions.methods import CircuitMethod
from lm_eval_cna.transformer.neurons import Expert, Neuron, Place, by_projection, in_order

CIRCUIT_SCHEMA: Literal["lm-eval-cna/circuit/1"] = "lm-eval-cna/circuit/1"
EXPERTS_SCHEMA: Literal["lm-eval-cna/circuit/2"] = "lm-eval-cna/circuit/2"
_SCHEMAS = (CIRCUIT_SCHEMA, EXPERTS_SCHEMA)
#: A circuit of 0.1 % of the largest model has a tenth of this; more is a mistake or an attack.
MOST_NEURONS = 1_000_000
_MAX_BYTES = 128 * 2**20
_MOST_COMMAS = 4 * MOST_NEURONS + 10_000  # four for each neuron, and some for the header


class Circuit(Intervention):
    """An ordered set of neurons; its first k neurons are a smaller circuit.

    The order is the strongest first (`cna`), the most active first (`top-activation`), or that of drawing (`random`).

    Example:
        >>> from lm_eval_cna import Circuit
        >>> circuit = Circuit(method="cna", name="refusal", neurons=[(2, 7, -1.5), (0, 3, 0.5)])
        >>> circuit.prefix(1).places, circuit.layers
        (((2, 7),), (0, 2))
    """

    schema_: Literal["lm-eval-cna/circuit/1", "lm-eval-cna/circuit/2"] = Field(default=CIRCUIT_SCHEMA, alias="schema")
    method: CircuitMethod
    neurons: Annotated[tuple[Neuron, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="before")
    @classmethod
    def _from_objects(cls, data: Any) -> Any:
        """Convert the objects of a file to neurons, and choose the schema of a new circuit."""
        if not isinstance(data, dict):
            return data
        neurons, model = data.get("neurons"), data.get("model")
        if isinstance(neurons, list):
            neurons = _neurons_of(neurons, data.get("schema"))
            data = {**data, "neurons": neurons}
        if "schema" not in data:
            named = any(getattr(neuron, "expert", None) is not None for neuron in neurons or ())
            if named or getattr(model, "experts", None) is not None:
                data = {**data, "schema": EXPERTS_SCHEMA}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        depth = self.model.num_layers  # None if a file from elsewhere does not name it
        if self.schema_ == CIRCUIT_SCHEMA and self.model.experts is not None:
            raise ValueError(f"model.experts needs the schema {EXPERTS_SCHEMA}")
        for position, (layer, index, _, expert) in enumerate(self.neurons):
            if depth is not None and layer >= depth:
                raise ValueError(f"neurons.{position}: layer {layer} is outside a model of {depth} layers")
            if expert is not None and self.schema_ == CIRCUIT_SCHEMA:
                raise ValueError(f"neurons.{position}: an expert needs the schema {EXPERTS_SCHEMA}")
            try:
                width = self.model.width_of(layer, expert)
            except ValueError as error:
                raise ValueError(f"neurons.{position}: {error}") from None
            if width is not None and index >= width:
                mlp = "MLP" if expert is None else "expert"
                raise ValueError(f"neurons.{position}: index {index} is outside an {mlp} of width {width}")
        dense = {neuron.layer for neuron in self.neurons if neuron.expert is None}
        mixed = dense & {neuron.layer for neuron in self.neurons if neuron.expert is not None}
        if mixed:
            raise ValueError(f"some neurons of layer {min(mixed)} name an expert and some do not")
        found = self.discovery.universal_filter
        if self.schema_ == CIRCUIT_SCHEMA and found is not None and any(len(place) > 2 for place in found.neurons):
            raise ValueError(f"universal neurons of experts need the schema {EXPERTS_SCHEMA}")
        repeated = [place for place, n in Counter(neuron.place for neuron in self.neurons).items() if n > 1]
        if repeated:
            words = "(layer, index)" if len(repeated[0]) == 2 else "(layer, expert, index)"
            raise ValueError(f"neuron {words} {repeated[0]} is named more than once")
        if self.method == "cna":
            sizes = [abs(n.delta) if n.delta is not None else math.nan for n in self.neurons]
            if not all(a >= b for a, b in pairwise(sizes)) or math.isnan(sizes[0]):
                raise ValueError(
                    "the neurons of a cna circuit need deltas and must be sorted by |delta|, largest first"
                )
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with at least one of the neurons, ascending."""
        return tuple(sorted({neuron.layer for neuron in self.neurons}))

    @property
    def sha256(self) -> str:
        """Hash of the set of neurons, whatever their order and deltas."""
        return json_sha256(in_order(self.places))

    @property
    def places(self) -> tuple[Place, ...]:
        """Each neuron as (layer, index) or (layer, expert, index), in the circuit's order."""
        return tuple(neuron.place for neuron in self.neurons)

    def prefix(self, k: int) -> Circuit:
        """The smaller circuit of the first k neurons.

        Raises:
            InterventionError: k is not between 1 and the circuit's size.
        """
        if not 1 <= k <= len(self.neurons):
            raise InterventionError(
                "circuit size", got=k, allowed=f"1 to {len(self.neurons)}, the neurons of {self.name}"
            )
        if k == len(self.neurons):
            return self
        # The header has the hash of all neurons' columns, which does not fit fewer neurons.
        model = self.model.model_copy(update={"columns_sha256": None})
        return self.model_copy(update={"neurons": self.neurons[:k], "model": model})

    def by_layer(self) -> dict[int, list[int]]:
        """Neuron indices by layer, both ascending; only for a model without experts.

        Raises:
            InterventionError: the circuit names experts; use `by_projection`.
        """
        grouped = self.by_projection()
        if any(expert is not None for _, expert in grouped):
            raise InterventionError(f"{self.name} names neurons of experts", allowed="a circuit of dense layers")
        return {layer: indices for (layer, _), indices in grouped.items()}

    def by_projection(self) -> dict[tuple[int, Expert | None], list[int]]:
        """Neuron indices by down-projection (layer, expert), ascending; the expert of a dense layer is None."""
        return by_projection(self.neurons)

    def write(self, path: str | Path) -> None:
        """Write the circuit as a JSON document with a checksum, whole or not at all.

        Raises:
            InterventionError: the file cannot be written.
        """
        header = self.model_dump(by_alias=True, mode="json", exclude={"neurons"})
        write_intervention(Path(path), _document(header, self.neurons))


def _document(header: dict[str, Any], neurons: Iterable[Neuron]) -> bytes:
    """The file's JSON, with one line for each neuron, so that versions of a file can be compared by eye."""
    header = {"schema": header.pop("schema"), "method": header.pop("method"), **header}
    keys = _keys(header["schema"])
    opened = json.dumps(header, indent=1, allow_nan=False).removesuffix("\n}")
    entries = (json.dumps({key: getattr(neuron, key) for key in keys}, allow_nan=False) for neuron in neurons)
    listed = ",\n  ".join(entries)
    return with_checksum(f'{opened},\n "neurons": [\n  {listed}\n ]\n}}\n')


def read_circuit_fields(path: Path) -> dict[str, Any]:
    """Read a circuit file for `Circuit.model_validate`, which checks the fields; only the schema is checked here.

    Raises:
        InterventionError: the file is not a JSON document of a known schema, or has changed since it was written.
        OSError: the file cannot be read.
    """
    try:
        raw = read_whole(path, limit=_MAX_BYTES)
        # Counted before parsing, since Python objects take ten times the file's size.
        if raw.count(b",") > _MOST_COMMAS or raw.count(b"[") > MOST_NEURONS:
            raise InterventionError(f"{path} holds too many neurons", allowed=f"up to {MOST_NEURONS:,}")
        document, _ = without_checksum(raw)
    except ChecksumError as error:
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


def _neurons_of(entries: list[Any], schema: Any) -> list[Any]:
    """Convert the objects of a document to neurons; other values are left for pydantic to refuse.

    Raises:
        ValueError: the keys of an object are not those of the schema.
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
    """Convert `{"layer,position,neuron": value}`; a neuron at several positions keeps its largest |value|."""
    deltas: dict[tuple[int, int], float] = {}
    for key, value in document.items():
        try:
            layer, _, index = (int(part) for part in key.split(","))
            value = float(value)
            if not math.isfinite(value):  # every comparison with NaN is false, so its neuron would be lost
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
