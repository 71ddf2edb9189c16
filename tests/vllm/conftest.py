"""Engines that several tests share, and a record of what was run.

Starting an engine takes longer than everything that is asked of it, so the tests of one (family, tensor parallel size)
follow each other. CNA_TEST_VLLM_FAMILIES names the families, or `all`; CNA_RECORD_VLLM the file for the record.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes half of the machine's memory
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two workers do not find a memory node each
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

ENGINE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16, "seed": 0}
_outcomes: dict[str, dict[str, bool]] = {}


class Pair(NamedTuple):
    """One checkpoint in both engines: cna-vllm, and cna-hf, with which it is compared."""

    ours: Any
    theirs: Any
    folder: Path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engines" in metafunc.fixturenames:
        from tests.vllm.checkpoints import CLASSES

        named = os.environ.get("CNA_TEST_VLLM_FAMILIES", "llama,qwen2")
        families = list(CLASSES) if named == "all" else named.split(",")
        chosen = [(family, size) for family in families for size in (1, 2)]
        metafunc.parametrize(
            "engines", chosen, ids=[f"{family}-tp{size}" for family, size in chosen], indirect=True, scope="module"
        )


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same checkpoint in vLLM, with the asked tensor parallel size, and in transformers."""
    from lm_eval_cna.models.hf import CNAHFLM
    from lm_eval_cna.models.vllm import CNAVLLM
    from tests.vllm.checkpoints import save

    family, size = request.param
    folder = save(tmp_path_factory.mktemp("model") / f"{family}-{size}", family)
    ours = CNAVLLM(pretrained=str(folder), tensor_parallel_size=size, **ENGINE)
    theirs = CNAHFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=8, attn_implementation="eager"
    )  # the attention that caps its logits, as Gemma 2 wants it
    yield Pair(ours, theirs, folder)
    ours.close()
    del ours
    gc.collect()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note, for each engine, whether every test of it passed."""
    engine = re.search(r"\[(\w+)-(tp\d+)\b", report.nodeid)
    if engine is not None and (report.when == "call" or report.failed):
        passed = _outcomes.setdefault(engine[1], {})
        passed[engine[2]] = passed.get(engine[2], True) and report.passed


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record, where one is asked for."""
    target = os.environ.get("CNA_RECORD_VLLM")
    if not target or not _outcomes:
        return
    import torch
    import transformers
    import vllm

    from tests.vllm.checkpoints import CLASSES

    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    record = {
        "versions": {**versions, "python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, no GPU: hooks in an eager engine, float32",
        "families": {CLASSES[family]: dict(sorted(passed.items())) for family, passed in sorted(_outcomes.items())},
    }
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
