"""The size of a circuit."""

from __future__ import annotations

import pytest

from lm_eval_cna.discovery.circuit_size import circuit_size
from lm_eval_cna.errors import ConfigError


@pytest.mark.parametrize(
    ("fraction", "layers", "width", "k"),
    [(0.001, 16, 8192, 131), (0.001, 2, 64, 1), (0.005, 4, 1024, 20), (1, 2, 3, 6)],
)
def test_circuit_size(fraction: float, layers: int, width: int, k: int) -> None:
    assert circuit_size(fraction, layers * width) == k


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_circuit_size_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction of the model's neurons"):
        circuit_size(fraction, 4)
