"""The hash of a model's weights: exact, and any edit shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lm_eval_cna.transformer.fingerprint import weights_sha256
from tests.helpers.models import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_edited_value_changes_it_and_undoing_changes_it_back(dtype: torch.dtype) -> None:
    model = tiny("llama", dtype=dtype)
    before = weights_sha256(model)
    assert weights_sha256(tiny("llama", dtype=dtype)) == before
    weight = model.model.layers[1].mlp.down_proj.weight.data
    kept = weight[7, 11].clone()
    weight[7, 11] = torch.nextafter(kept.float(), torch.tensor(torch.inf)) if dtype == torch.float32 else kept * 1.01
    assert weight[7, 11] != kept
    assert weights_sha256(model) != before
    weight[7, 11] = kept
    assert weights_sha256(model) == before


def test_the_sign_of_zero_is_seen() -> None:
    model = nn.Linear(64, 64)
    model.weight.data[32, 32] = 0.0
    before = weights_sha256(model)
    model.weight.data[32, 32] = -0.0
    assert weights_sha256(model) != before


def test_layout_in_memory_does_not_matter_but_names_shapes_and_types_do() -> None:
    model = nn.Linear(6, 4, bias=False)
    strided = nn.Linear(6, 4, bias=False)
    strided.weight.data = model.weight.data.T.contiguous().T
    assert not strided.weight.is_contiguous()
    assert weights_sha256(strided) == weights_sha256(model)
    reshaped = nn.Linear(4, 6, bias=False)
    reshaped.weight.data = model.weight.data.reshape(6, 4)
    hashes = {
        weights_sha256(model),
        weights_sha256(reshaped),
        weights_sha256(nn.Sequential(model)),
        weights_sha256(nn.Linear(6, 4, bias=False).to(torch.bfloat16)),
    }
    assert len(hashes) == 4


def test_buffers_count_and_odd_tensors_do_no_harm() -> None:
    model = nn.BatchNorm1d(3)  # its buffers hold a count as an integer scalar
    before = weights_sha256(model)
    model.num_batches_tracked += 1
    assert weights_sha256(model) != before
    model.register_buffer("empty", torch.empty(0, 3))
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("away", torch.empty(3, device="meta"))
    assert len(weights_sha256(model)) == 64
