"""Writes down which families ran with which quantizer, into the file that RECORD_QUANTIZED names."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ran: dict[str, dict[str, bool]] = {}
agreement: dict[str, float] = {}


@pytest.fixture(scope="session")
def record() -> dict[str, dict[str, bool]]:
    """Family -> quantizer -> True, filled by the tests that passed."""
    return ran


@pytest.fixture(scope="session")
def largest() -> dict[str, float]:
    """Quantizer -> the largest difference of a logit from the dequantized model's."""
    return agreement


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("RECORD_QUANTIZED")
    if target is None or not ran:
        return
    found = {}
    for name in ("torch", "transformers", "bitsandbytes", "torchao", "gptqmodel", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    document = {
        "versions": found,
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "largest_logit_difference": {name: float(f"{value:.3g}") for name, value in sorted(agreement.items())},
        "families": {family: dict(sorted(formats.items())) for family, formats in sorted(ran.items())},
    }
    Path(target).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
