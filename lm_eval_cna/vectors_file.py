"""How vectors lie on disk: safetensors, one tensor a layer, with the header in the metadata. Plain data in and out.

Floor 1. Importable without torch. The metadata also holds a hash of header and tensors, so that damage is found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.checksum import SEAL
from lm_eval_cna.files.json_reader import load_json

if TYPE_CHECKING:
    import torch

VECTORS_SCHEMA: Literal["lm-eval-cna/vectors/1"] = "lm-eval-cna/vectors/1"
_METADATA_KEY = "lm-eval-cna"
_MAX_BYTES = 2**30  # the largest models have 10 MB of vectors


def vectors_document(header: Mapping[str, Any], vectors: Mapping[int, torch.Tensor]) -> bytes:
    """The bytes of a vectors file.

    Args:
        header: everything but the tensors, as plain data.
        vectors: layer -> tensor [hidden]; written as float32.
    """
    from safetensors.torch import save

    text = json.dumps(header, allow_nan=False)
    tensors = {f"layer.{layer}": vector.float().contiguous().cpu() for layer, vector in vectors.items()}
    raw: bytes = save(tensors, metadata={_METADATA_KEY: text, SEAL: _contents_sha256(text, tensors)})
    return raw


def read_vectors_fields(path: Path) -> dict[str, Any]:
    """The fields of vectors, unchecked but for the schema and the tensors' names; `tensors` by layer.

    Raises:
        InterventionError: the file is no safetensors file of vectors, too large, or not what was written there.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InterventionError(f"{path} is too large", got=f"{size:,} bytes", allowed=f"up to {_MAX_BYTES:,}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, sorted(file.keys())
            header = load_json(metadata.get(_METADATA_KEY, "null").encode())
            layers = _layers_of(path, keys)  # before any of them is read
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, ValueError) as error:
        raise InterventionError(f"{path} is not a readable safetensors file: {error}") from error
    if SEAL in metadata and metadata[SEAL] != _contents_sha256(metadata.get(_METADATA_KEY, ""), tensors):
        raise InterventionError(f"{path} is damaged: it is not what was written there", do="make it again")
    if not isinstance(header, dict) or header.get("schema") != VECTORS_SCHEMA:
        got = header.get("schema") if isinstance(header, dict) else None
        raise InterventionError(f"{path} is not a vectors file", got=got or "no header", allowed=VECTORS_SCHEMA)
    return {**header, "tensors": {layer: tensors[key] for layer, key in zip(layers, keys, strict=True)}}


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The raw bytes of a tensor, on the host."""
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
    """Hash of all that a vectors file holds."""
    data = header.encode()
    for key, tensor in sorted(tensors.items()):
        data += f"{key} {tuple(tensor.shape)} {tensor.dtype} ".encode() + tensor_bytes(tensor)
    return hashlib.sha256(data).hexdigest()
