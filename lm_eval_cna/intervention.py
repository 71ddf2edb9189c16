"""Circuit and Vectors: what a file in `circuits/` holds. Frozen, validated, versioned; read and write.

Floor 1. Importable without torch, so that reports can read layer profiles on any machine. File formats are in
DESIGN section 6; nothing here or anywhere unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lm_eval_cna import hub
from lm_eval_cna.circuit_file import (
    CIRCUIT_SCHEMA,
    EXPERTS_SCHEMA,
    circuit_document,
    neurons_of,
    read_circuit_fields,
)
from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import is_file, write_whole
from lm_eval_cna.files.records import Record
from lm_eval_cna.provenance import DiscoveryInfo, LayerIndex, ModelInfo
from lm_eval_cna.transformer.neurons import Expert, Neuron, Place, by_projection, in_order
from lm_eval_cna.vectors_file import VECTORS_SCHEMA, read_vectors_fields, tensor_bytes, vectors_document


class Intervention(Record):
    """What circuits and vectors have in common: where they come from."""

    name: str
    model: ModelInfo = Field(default_factory=ModelInfo)
    discovery: DiscoveryInfo = Field(default_factory=DiscoveryInfo)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are touched, ascending."""
        raise NotImplementedError

    @property
    def sha256(self) -> str:
        """Hash of what steering does with it; provenance and deltas do not enter."""
        raise NotImplementedError


class Circuit(Intervention):
    """A set of neurons, so that a prefix is a smaller circuit.

    Strongest first (`cna`), most active first (`top-activation`), or in the order in which they were drawn (`random`).
    """

    schema_: Literal["lm-eval-cna/circuit/1", "lm-eval-cna/circuit/2"] = Field(default=CIRCUIT_SCHEMA, alias="schema")
    method: Literal["cna", "random", "top-activation"]
    neurons: Annotated[tuple[Neuron, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="before")
    @classmethod
    def _from_objects(cls, data: Any) -> Any:
        """Accept the file's `{"layer": ..., "index": ..., "delta": ...}` objects; choose the schema of a new one."""
        if not isinstance(data, dict):
            return data
        neurons, model = data.get("neurons"), data.get("model")
        if isinstance(neurons, list):
            neurons = neurons_of(neurons, data.get("schema"))
            data = {**data, "neurons": neurons}
        if "schema" not in data:
            named = any(getattr(neuron, "expert", None) is not None for neuron in neurons or ())
            if named or getattr(model, "experts", None) is not None:
                data = {**data, "schema": EXPERTS_SCHEMA}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        depth = self.model.num_layers  # None where a foreign file does not say
        if self.schema_ == CIRCUIT_SCHEMA and self.model.experts is not None:
            raise ValueError(f"model.experts needs the schema {EXPERTS_SCHEMA}")
        for position, (layer, index, delta, expert) in enumerate(self.neurons):
            if not 0 <= layer < (depth or 100_000):
                model = f"a model of {depth} layers" if depth else "any model"
                raise ValueError(f"neurons.{position}: layer {layer} is outside {model}")
            if expert is not None and self.schema_ == CIRCUIT_SCHEMA:
                raise ValueError(f"neurons.{position}: an expert needs the schema {EXPERTS_SCHEMA}")
            if isinstance(expert, int) and not 0 <= expert <= 100_000:
                raise ValueError(f"neurons.{position}: expert {expert} is outside any model")
            try:
                width = self.model.width_of(layer, expert)
            except ValueError as error:
                raise ValueError(f"neurons.{position}: {error}") from None
            if not 0 <= index < (width or 2**31):
                mlp = f"an {'MLP' if expert is None else 'expert'} of width {width}" if width else "any MLP"
                raise ValueError(f"neurons.{position}: index {index} is outside {mlp}")
            if delta is not None and not math.isfinite(delta):
                raise ValueError(f"neurons.{position}: delta {delta} is not a finite number")
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
        """The layers that are touched, ascending."""
        return tuple(sorted({neuron.layer for neuron in self.neurons}))

    @property
    def sha256(self) -> str:
        """Hash of the set of neurons."""
        return _sha256(json.dumps(in_order(self.places)).encode())

    @property
    def places(self) -> tuple[Place, ...]:
        """The neurons' names, (layer, index) or (layer, expert, index), in the circuit's order."""
        return tuple(neuron.place for neuron in self.neurons)

    def prefix(self, k: int) -> Circuit:
        """The circuit of its first k neurons.

        Raises:
            InterventionError: k is not between 1 and the circuit's size.
        """
        if not 1 <= k <= len(self.neurons):
            raise InterventionError(
                "circuit size", got=k, allowed=f"1 to {len(self.neurons)}, the neurons of {self.name}"
            )
        if k == len(self.neurons):
            return self
        # The header's hash is that of all the circuit's columns.
        model = self.model.model_copy(update={"columns_sha256": None})
        return self.model_copy(update={"neurons": self.neurons[:k], "model": model})

    def by_layer(self) -> dict[int, list[int]]:
        """Neuron indices of each touched layer of a model without experts, layers and indices ascending.

        Raises:
            InterventionError: the circuit names experts: see `by_projection`.
        """
        grouped = self.by_projection()
        if any(expert is not None for _, expert in grouped):
            raise InterventionError(f"{self.name} names neurons of experts", allowed="a circuit of dense layers")
        return {layer: indices for (layer, _), indices in grouped.items()}

    def by_projection(self) -> dict[tuple[int, Expert | None], list[int]]:
        """Neuron indices of each touched down-projection (layer, expert), in order; a dense layer's expert is None."""
        return by_projection(self.neurons)

    def write(self, path: str | Path) -> None:
        """Write the circuit as one JSON document, whole or not at all.

        Raises:
            InterventionError: the file cannot be written there.
        """
        header = self.model_dump(by_alias=True, mode="json", exclude={"neurons"})
        _write_atomically(Path(path), circuit_document(header, self.neurons))


class Vectors(Intervention):
    """One vector per layer in the residual width: mean(positive) - mean(negative).

    Attributes:
        tensors: layer -> tensor [hidden], float32.
        place: "write", added to what the MLP contributes to the residual stream, or "block", added to the
            residual stream behind the layer.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    schema_: Literal["lm-eval-cna/vectors/1"] = Field(default=VECTORS_SCHEMA, alias="schema")
    method: Literal["caa", "caa-residual", "random-vectors"]
    place: Literal["write", "block"] = "write"
    tensors: dict[LayerIndex, Any] = Field(exclude=True, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        import torch

        for layer, tensor in self.tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.ndim != 1 or not len(tensor):
                raise ValueError(f"layer.{layer} must be a tensor of one dimension")
            if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
                raise ValueError(f"layer.{layer} holds {str(tensor.dtype).removeprefix('torch.')}, no float")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"layer.{layer} holds values that are not finite")
        sizes = {tensor.shape[0] for tensor in self.tensors.values()}
        if len(sizes) > 1 or (self.model.hidden_size is not None and sizes != {self.model.hidden_size}):
            model = f"a model of width {self.model.hidden_size}" if self.model.hidden_size else "one model"
            raise ValueError(f"vectors of sizes {sorted(sizes)} in {model}")
        if self.model.num_layers is not None and max(self.tensors) >= self.model.num_layers:
            raise ValueError(f"layer.{max(self.tensors)} is outside a model of {self.model.num_layers} layers")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are touched, ascending."""
        return tuple(sorted(self.tensors))

    @property
    def sha256(self) -> str:
        """Hash of the place and of the tensors."""
        data = self.place.encode()
        for layer in self.layers:
            data += str(layer).encode() + tensor_bytes(self.tensors[layer].float())
        return _sha256(data)

    def write(self, path: str | Path) -> None:
        """Write the vectors as safetensors with the header in the metadata, whole or not at all.

        Raises:
            InterventionError: the file cannot be written there.
        """
        header = self.model_dump(by_alias=True, mode="json")
        _write_atomically(Path(path), vectors_document(header, {layer: self.tensors[layer] for layer in self.layers}))


def read_intervention(source: str | Path) -> Circuit | Vectors:
    """Read a circuit or vectors.

    Args:
        source: a path, or `hf://owner/repo/file@revision`. A JSON file is a circuit, also in the reference
            repository's form `{"layer,position,neuron": value}`; a `.safetensors` file is vectors.

    Raises:
        InterventionError: the file is missing, damaged, of another schema, or inconsistent.
    """
    path = hub.fetch(str(source)) if str(source).startswith(hub.SCHEME) else Path(source)
    if not is_file(path):
        raise InterventionError("no such intervention file", got=str(path), do="make one with `lm-eval-cna discover`")
    try:
        if path.suffix == ".safetensors":
            return Vectors.model_validate(read_vectors_fields(path))
        return Circuit.model_validate(read_circuit_fields(path))
    except OSError as error:
        raise InterventionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise InterventionError(f"{path} is not a valid intervention file: {_first_error(error)}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_error(error: ValidationError) -> str:
    first, *rest = error.errors(include_url=False)
    loc = list(first["loc"])
    if len(loc) > 2 and loc[0] == "neurons" and isinstance(loc[2], int):  # pydantic before 2.14 counts a tuple's fields
        loc[2] = Neuron._fields[loc[2]]
    where = ".".join(map(str, loc))
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{more}"


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise InterventionError(f"cannot write {path}: {error.strerror or error}") from error
