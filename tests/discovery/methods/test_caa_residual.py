"""Which layer the residual vector is taken from."""

from __future__ import annotations

import torch

from lm_eval_cna.discovery.methods.caa_residual import best_layer


def test_the_layer_is_relative_and_never_in_the_last_fifth() -> None:
    negative = torch.tensor([[1.0, 0], [10, 0], [10, 0], [10, 0], [10, 0]], dtype=torch.float64)
    positive = negative.clone()
    positive[0, 1] = 0.9  # a small difference of small values
    positive[2, 1] = 5.0  # a larger one of large values, relatively smaller
    positive[4, 1] = 99.0  # in the last fifth
    assert best_layer(torch.stack((positive, negative))) == 0


def test_the_layer_of_equal_classes_is_the_first() -> None:
    assert best_layer(torch.zeros(2, 1, 4)) == 0
