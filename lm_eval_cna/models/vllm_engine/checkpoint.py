"""A checkpoint on disk: its identity, its transformers model without weights, and its down-projections.

vLLM cuts, fuses and packs the weights that it holds. So what cna-hf reads from its loaded model, cna-vllm reads from
the files. The skeleton (the transformers model on the meta device) serves everything that looks at a model.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.families import FAMILIES

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_BLOB = re.compile(r"[0-9a-f]{64}")


def find_checkpoint(pretrained: str, revision: str | None, cache_dir: str | None = None) -> Path | None:
    """The folder of a model: a local path, or its snapshot in the hub's cache; None if it is not on the disk."""
    if Path(pretrained).is_dir():
        return Path(pretrained)
    try:
        return Path(snapshot_download(pretrained, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def checkpoint_sha256(folder: Path) -> str:
    """Hash of the configuration and of the weight files (of the first kind found).

    A file in the hub's cache is named by its hash, which is not computed again.
    """
    files = next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), [])
    return json_sha256([[path.name, _file_sha256(path)] for path in [*files, folder / "config.json"] if path.is_file()])


def _file_sha256(path: Path) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_skeleton(config: Any, dtype: torch.dtype, *, name: str, trust_remote_code: bool = False) -> nn.Module:
    """The transformers model of a configuration, with all weights on the meta device."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.name_or_path = name  # type: ignore[assignment]
    return model.eval()


def load_down_projections(skeleton: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Give the skeleton the checkpoint's down-projections; any that safetensors files do not hold stay on meta.

    They are memory-mapped, and copied only if the checkpoint has another precision.
    """
    config: Any = find_architecture(skeleton).stack.config
    family = FAMILIES[config.model_type]
    ending = re.compile(rf"(?:^|.*\.)({family.layers}\.\d+\.{family.mlp}\.{family.down})\.weight")
    stored = _stored(folder, ending)
    for name, module in list(skeleton.named_modules()):
        found = ending.fullmatch(f"{name}.weight")
        file = None if found is None else stored.get(found[1])
        if file is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
            with safe_open(file[0], framework="pt") as opened:
                tensor = opened.get_tensor(file[1])
            if tensor.shape == module.weight.shape:
                module.weight = nn.Parameter(tensor.to(dtype), requires_grad=False)


def _stored(folder: Path, ending: re.Pattern[str]) -> dict[str, tuple[Path, str]]:
    """By the last part of a down-projection's name, its file and its full name there.

    The first part may differ between a model and its checkpoint (GPT-2, multimodal models).
    """
    stored: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                keys = list(file.keys())
        except (SafetensorError, OSError):
            continue
        for key in keys:
            found = ending.fullmatch(key)
            if found is not None:
                stored[found[1]] = (path, key)
    return stored
