"""Vectors, one for each layer, to be added to the residual stream; and their safetensors files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.checksum import CHECKSUM
from lm_eval_cna.files.json_reader import load_json
from lm_eval_cna.interventions.header import Intervention, LayerIndex, write_intervention
from lm_eval_cna.interventions.methods import VectorsMethod

if TYPE_CHECKING:
    import torch

VECTORS_SCHEMA: Literal["lm-eval-cna/vectors/1"] = "lm-eval-cna/vectors/1"
_METADATA_KEY = "lm-eval-cna"
_MAX_BYTES = 2**30  # the largest models have 10 MB of vectors


class Vectors(Intervention):
    """One vector [hidden] for each layer: mean(positive) - mean(negative) of what was read there.

    Example:
        >>> import torch
        >>> from lm_eval_cna import Vectors
        >>> vectors = Vectors(method="caa", name="refusal", tensors={0: torch.ones(4), 1: torch.zeros(4)})
        >>> vectors.layers, vectors.place
        ((0, 1), 'write')
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    schema_: Literal["lm-eval-cna/vectors/1"] = Field(default=VECTORS_SCHEMA, alias="schema")
    method: VectorsMethod
    place: Literal["write", "block"] = "write"
    """Where it is added: "write", to the MLP's output before that joins the residual stream, or "block", to the
    residual stream behind the layer."""
    tensors: dict[LayerIndex, Any] = Field(exclude=True, min_length=1)
    """Layer -> tensor [hidden], float32."""

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
        """The layers that have a vector, ascending."""
        return tuple(sorted(self.tensors))

    @property
    def sha256(self) -> str:
        """Hash of the place and the tensors."""
        data = self.place.encode()
        for layer in self.layers:
            data += str(layer).encode() + tensor_bytes(self.tensors[layer].float())
        return hashlib.sha256(data).hexdigest()

    def write(self, path: str | Path) -> None:
        """Write the vectors as safetensors, float32, with the header in the metadata; whole or not at all.

        Raises:
            InterventionError: the file cannot be written.
        """
        from safetensors.torch import save

        header = json.dumps(self.model_dump(by_alias=True, mode="json"), allow_nan=False)
        tensors = {f"layer.{layer}": self.tensors[layer].float().contiguous().cpu() for layer in self.layers}
        metadata = {_METADATA_KEY: header, CHECKSUM: _contents_sha256(header, tensors)}
        write_intervention(Path(path), save(tensors, metadata=metadata))


def read_vectors_fields(path: Path) -> dict[str, Any]:
    """Read a vectors file for `Vectors.model_validate`; only the schema and the tensors' names are checked here.

    Raises:
        InterventionError: the file is not a safetensors file of vectors, is too large, or has changed since it was
            written.
        OSError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InterventionError(f"{path} is too large", got=f"{size:,} bytes", allowed=f"up to {_MAX_BYTES:,}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, sorted(file.keys())
            header = load_json(metadata.get(_METADATA_KEY, "null").encode())
            layers = _layers_of(path, keys)  # checked before any tensor is read
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, ValueError) as error:
        raise InterventionError(f"{path} is not a readable safetensors file: {error}") from error
    if CHECKSUM in metadata and metadata[CHECKSUM] != _contents_sha256(metadata.get(_METADATA_KEY, ""), tensors):
        raise InterventionError(f"{path} is damaged: it is not what was written there", do="make it again")
    if not isinstance(header, dict) or header.get("schema") != VECTORS_SCHEMA:
        got = header.get("schema") if isinstance(header, dict) else None
        raise InterventionError(f"{path} is not a vectors file", got=got or "no header", allowed=VECTORS_SCHEMA)
    return {**header, "tensors": {layer: tensors[key] for layer, key in zip(layers, keys, strict=True)}}


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The raw bytes of a tensor on any device."""
    import torch

    raw: bytes = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return raw


def _layers_of(path: Path, keys: Sequence[str]) -> list[int]:
    named = [re.fullmatch(r"layer\.(0|[1-9][0-9]{0,5})", key) for key in keys]  # layer.00 would be layer.0
    strange = next((key for key, found in zip(keys, named, strict=True) if found is None), None)
    if strange is not None:
        raise InterventionError(f"{path} has a tensor of unknown name", got=strange, allowed="layer.<number>")
    return [int(found[1]) for found in named if found is not None]


def _contents_sha256(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of everything in a vectors file."""
    data = header.encode()
    for key, tensor in sorted(tensors.items()):
        data += f"{key} {tuple(tensor.shape)} {tensor.dtype} ".encode() + tensor_bytes(tensor)
    return hashlib.sha256(data).hexdigest()
