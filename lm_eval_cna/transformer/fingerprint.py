"""Identity of a model's weights: what tells two checkpoints of one shape apart.

A sum over the bit patterns of every tensor as integers: exact, so it does not depend on threads, device or
the order of summation, and one edited neuron changes it (base and instruct organisms differ in 24 of 4,096 neurons).
It detects mistakes, not adversaries.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from lm_eval_cna.transformer.weights import stored

_PATTERN = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_sha256(model: nn.Module) -> str:
    """Hash of all parameters and buffers by name, shape, type and contents.

    Must be called on the unsteered model, and on all processes that a weight is cut over: the hash is that of the whole
    weight. Offloaded tensors are read once, and quantized ones enter as they are packed.
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
    """Sum of the elements' bit patterns and the first and last eight elements, modulo 2^64."""
    flat = tensor.contiguous().view(-1)
    bits = flat.view(_PATTERN[flat.element_size()])
    total = bits.sum(dtype=torch.int64)
    ends = torch.cat([bits[:8], bits[-8:]]).to(torch.int64)
    return torch.cat([total.view(1), ends]).cpu().numpy().tobytes()
