"""What every test gets: no network, the repository's root, and the plugin as an interpreter's start would load it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# Before anything imports huggingface_hub, which reads them once.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"

# `make test` keeps the .pth file from importing the package before coverage is measured. Processes that tests start
# are to behave as a user's do, and this one too from here on.
os.environ.pop("LM_EVAL_CNA_AUTOLOAD", None)
import lm_eval_cna.autoload  # noqa: E402, F401

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that the tests stand in."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """A task manager that knows our tasks alone; one that knows lm-eval's takes seconds to build."""
    from lm_eval.tasks import TaskManager

    from lm_eval_cna.resources import tasks_dir

    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


@pytest.fixture(scope="module")
def no_environment_report() -> Iterator[None]:
    """lm-eval calls `pip list` and more for every evaluation, which takes longer than those of tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
        yield
