"""A hash of a model's weights, which tells two checkpoints of one shape apart.

Every tensor enters by the sum of its bit patterns as integers. The sum is exact, so threads, device and order do not
matter, and one edited neuron changes it. It detects mistakes, not attacks.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lm_eval_cna.transformer.weights import stored

_PATTERN = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_sha256(model: nn.Module) -> str:
    """Hash the names, shapes, types and contents of all parameters and buffers.

    Call it on the unsteered model, and on every process that holds a part of a sharded weight, since the hash is of the
    whole weight. Offloaded tensors are read; quantized tensors are hashed in packed form.
    """
    digest = hashlib.sha256()
    owners = dict(model.named_modules())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        owner, _, own_name = name.rpartition(".")
        for part in stored(tensor, owners.get(owner, model), own_name):
            digest.update(_checksum(part))
    return digest.hexdigest()


def _checksum(tensor: torch.Tensor) -> bytes:
    """The sum of the bit patterns modulo 2^64, then the first and last eight elements."""
    flat = tensor.contiguous().view(-1)
    bits = flat.view(_PATTERN[flat.element_size()])
    total = bits.sum(dtype=torch.int64)
    ends = torch.cat([bits[:8], bits[-8:]]).to(torch.int64)
    return torch.cat([total.view(1), ends]).cpu().numpy().tobytes()
