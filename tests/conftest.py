"""What every test gets: no network, the repository's root, and the plugin as an interpreter's start would load it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports huggingface_hub, which reads them once.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"

# `make test` keeps the .pth file from importing the package before coverage is measured. Processes that tests start
# are to behave as a user's do, and this one too from here on.
os.environ.pop("LM_EVAL_CNA_AUTOLOAD", None)
import lm_eval_cna.autoload  # noqa: E402, F401


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that the tests stand in."""
    return Path(__file__).resolve().parent.parent
