"""Circuit and Vectors: what a file in `circuits/` holds. Frozen, validated, versioned; read and write.

Floor 1. Importable without torch, so that reports can read layer profiles on any machine. File formats are in
DESIGN section 6; nothing here or anywhere unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.provenance import DiscoveryInfo, LayerIndex, ModelInfo, Record

if TYPE_CHECKING:
    import torch

CIRCUIT_SCHEMA: Literal["lm-eval-cna/circuit/1"] = "lm-eval-cna/circuit/1"
VECTORS_SCHEMA: Literal["lm-eval-cna/vectors/1"] = "lm-eval-cna/vectors/1"
_METADATA_KEY = "lm-eval-cna"
_MAX_CIRCUIT_BYTES = 256 * 2**20  # some two million neurons; a larger file is a mistake or an attack


class Neuron(NamedTuple):
    """One input channel of a layer's down-projection.

    Attributes:
        layer: decoder layer, from 0.
        index: channel in the layer, from 0.
        delta: mean activation on positive prompts less that on negative ones; None where it was not measured
            (a control).
    """

    layer: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a neuron
    delta: float | None = None


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

    schema_: Literal["lm-eval-cna/circuit/1"] = Field(default=CIRCUIT_SCHEMA, alias="schema")
    method: Literal["cna", "random", "top-activation"]
    neurons: Annotated[tuple[Neuron, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="before")
    @classmethod
    def _from_objects(cls, data: Any) -> Any:
        """Accept the file's `{"layer": ..., "index": ..., "delta": ...}` objects."""
        if isinstance(data, dict) and isinstance(data.get("neurons"), list):
            neurons = []
            for position, entry in enumerate(data["neurons"]):
                if isinstance(entry, dict) and (
                    {"layer", "index"} - entry.keys() or entry.keys() - set(Neuron._fields)
                ):
                    raise ValueError(f"neurons.{position} must have the keys layer, index, delta; got {sorted(entry)}")
                neurons.append(Neuron(**entry) if isinstance(entry, dict) else entry)
            data = {**data, "neurons": neurons}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        depth, width = self.model.num_layers, self.model.mlp_width  # None where a foreign file does not say
        for position, (layer, index, delta) in enumerate(self.neurons):
            if not 0 <= layer < (depth or 100_000):
                model = f"a model of {depth} layers" if depth else "any model"
                raise ValueError(f"neurons.{position}: layer {layer} is outside {model}")
            if not 0 <= index < (width or 2**31):
                mlp = f"an MLP of width {width}" if width else "any MLP"
                raise ValueError(f"neurons.{position}: index {index} is outside {mlp}")
            if delta is not None and not math.isfinite(delta):
                raise ValueError(f"neurons.{position}: delta {delta} is not a finite number")
        repeated = [pair for pair, n in Counter((n.layer, n.index) for n in self.neurons).items() if n > 1]
        if repeated:
            raise ValueError(f"neuron (layer, index) {repeated[0]} is named more than once")
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
        return _sha256(json.dumps(sorted((n.layer, n.index) for n in self.neurons)).encode())

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
        """Neuron indices of each touched layer, layers and indices ascending."""
        grouped: dict[int, list[int]] = {layer: [] for layer in self.layers}
        for layer, index in sorted((n.layer, n.index) for n in self.neurons):
            grouped[layer].append(index)
        return grouped

    def write(self, path: str | Path) -> None:
        """Write the circuit as one JSON document, whole or not at all.

        Raises:
            InterventionError: the file cannot be written there.
        """
        header = self.model_dump(by_alias=True, mode="json", exclude={"neurons"})
        header = {"schema": header.pop("schema"), "method": header.pop("method"), **header}
        opened = json.dumps(header, indent=1, allow_nan=False).removesuffix("\n}")
        neurons = ",\n  ".join(json.dumps(neuron._asdict(), allow_nan=False) for neuron in self.neurons)
        _write_atomically(Path(path), f'{opened},\n "neurons": [\n  {neurons}\n ]\n}}\n'.encode())


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
            if not isinstance(tensor, torch.Tensor) or tensor.ndim != 1:
                raise ValueError(f"layer.{layer} must be a tensor of one dimension")
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
        from safetensors.torch import save

        header = json.dumps(self.model_dump(by_alias=True, mode="json"), allow_nan=False)
        tensors = {f"layer.{layer}": self.tensors[layer].float().contiguous().cpu() for layer in self.layers}
        _write_atomically(Path(path), save(tensors, metadata={_METADATA_KEY: header}))


def read_intervention(source: str | Path) -> Circuit | Vectors:
    """Read a circuit or vectors.

    Args:
        source: a path, or `hf://owner/repo/file@revision`. A JSON file is a circuit, also in the reference
            repository's form `{"layer,position,neuron": value}`; a `.safetensors` file is vectors.

    Raises:
        InterventionError: the file is missing, damaged, of another schema, or inconsistent.
    """
    path = _download(str(source)) if str(source).startswith("hf://") else Path(source)
    if not path.is_file():
        raise InterventionError("no such intervention file", got=str(path), do="make one with `lm-eval-cna discover`")
    try:
        return _read_vectors(path) if path.suffix == ".safetensors" else _read_circuit(path)
    except OSError as error:
        raise InterventionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise InterventionError(f"{path} is not a valid intervention file: {_first_error(error)}") from error


def _read_circuit(path: Path) -> Circuit:
    if path.stat().st_size > _MAX_CIRCUIT_BYTES:
        raise InterventionError(f"{path} is too large for a circuit", allowed=f"up to {_MAX_CIRCUIT_BYTES >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InterventionError(
            f"{path} is not JSON: {error or 'nested too deeply'}", do="was it cut short?"
        ) from error
    if not isinstance(document, dict) or "schema" not in document:
        if isinstance(document, dict) and document and all(key.count(",") == 2 for key in document):
            return _from_reference(path, document)
        raise InterventionError(
            f"{path} has no schema", allowed=f"{CIRCUIT_SCHEMA}, or the reference repository's circuits"
        )
    if document["schema"] != CIRCUIT_SCHEMA:
        raise InterventionError(f"{path} has another schema", got=document["schema"], allowed=CIRCUIT_SCHEMA)
    return Circuit.model_validate(document)


def _from_reference(path: Path, document: dict[str, Any]) -> Circuit:
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
    neurons = [Neuron(layer, index, delta) for (layer, index), delta in ranked]
    return Circuit(method="cna", name=path.stem, neurons=tuple(neurons))


def _read_vectors(path: Path) -> Vectors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InterventionError(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict) or header.get("schema") != VECTORS_SCHEMA:
        got = header.get("schema") if isinstance(header, dict) else None
        raise InterventionError(f"{path} is not a vectors file", got=got or "no header", allowed=VECTORS_SCHEMA)
    by_layer = {}
    for key, tensor in tensors.items():
        named = re.fullmatch(r"layer\.(0|[1-9][0-9]{0,5})", key)  # layer.00 would take the place of layer.0
        if named is None:
            raise InterventionError(f"{path} has a tensor of unknown name", got=key, allowed="layer.<number>")
        by_layer[int(named[1])] = tensor
    return Vectors.model_validate({**header, "tensors": by_layer})


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The raw bytes of a tensor, on the host."""
    import torch

    raw: bytes = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return raw


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_error(error: ValidationError) -> str:
    first, *rest = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{more}"


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise InterventionError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is gone where all went well, and its folder may be missing where not
            temporary.unlink()


def _download(source: str) -> Path:
    """Fetch `hf://owner/repo/file@revision` into the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    location, _, revision = source.removeprefix("hf://").partition("@")
    parts = location.split("/")
    if len(parts) < 3 or not all(parts) or not revision or ".." in parts:
        raise InterventionError(
            "not an address of a file on the hub", got=source, allowed="hf://owner/repo/file@revision"
        )
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise InterventionError(f"cannot fetch {source}: {error}") from error
