"""What travels to a worker comes out as it went in, and a worker takes only what is the sweep's. Needs no Ray."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep.answers import compute
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.executors import worker as workers
from lm_eval_cna.sweep.executors.base import ThisProcess
from lm_eval_cna.sweep.executors.ray import cluster, free_weights
from lm_eval_cna.sweep.executors.transfer import (
    pack_batch,
    pack_sweep,
    unpack_batch,
    unpack_interventions,
    unpack_responses,
)
from lm_eval_cna.sweep.executors.worker import Worker
from lm_eval_cna.sweep.prepare import PreparedSweep, check_sweep, prepare
from tests.helpers.checkpoints import save_llama
from tests.sweep.test_runner import values

PackedSweep = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    judge = {
        "model": "local-chat-completions",
        "model_args": {"model": "m", "base_url": "http://h", "api_key": "sk-4711"},
    }
    asked = values(model, tmp_path_factory.mktemp("run") / "run", methods=["cna", "caa", "random", "random-vectors"])
    config = parse_config({**asked, "judge": judge, "top_k": [2, 4], "scale": 0.5})
    without = config.model_copy(update={"judge": None})  # who is not there to be asked a trial question
    return replace(prepare(check_sweep(without, manager)), config=config)


@pytest.fixture(scope="module")
def packed(prepared: PreparedSweep) -> PackedSweep:
    return pack_sweep(prepared)


@pytest.fixture(scope="module")
def opened(packed: PackedSweep) -> Iterator[Worker]:
    worker = Worker()
    assert "value" in worker.open(packed)
    yield worker


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or type(value) in (str, bytes, int, float, bool)


def test_only_plain_values_travel_and_no_secret(packed: PackedSweep, prepared: PreparedSweep) -> None:
    assert plain(packed) and "sk-4711" not in repr(packed)
    assert all(plain(pack_batch(batch)) for batch in prepared.plan.batches)


def test_interventions_are_what_they_were(packed: PackedSweep, prepared: PreparedSweep) -> None:
    found = unpack_interventions(packed)
    assert found.hashes == prepared.interventions.hashes and found.scale == 0.5
    assert [found.setting(cell).multiplier for cell in prepared.plan.cells] == [
        c.multiplier for c in prepared.plan.cells
    ]
    assert len(found.controls) == 4


def test_a_worker_gives_the_answers_of_this_process(opened: Worker, prepared: PreparedSweep) -> None:
    plan = prepared.plan
    kinds: dict[str, Any] = {}
    for batch in plan.batches:
        kinds.setdefault(batch.kind, batch)
    assert len(kinds) == 2
    for batch in kinds.values():
        travelled = unpack_batch(pack_batch(batch))
        assert travelled == batch and [r.arguments for r in travelled.requests] == [r.arguments for r in batch.requests]
        ((_, here),) = compute(prepared.lm, plan.settings, [batch], plan.prompts, mode=plan.mode)
        reply = opened.compute(pack_batch(batch))
        assert plain(reply) and unpack_responses(reply["value"]) == here
    assert opened.divergence()["value"] == ThisProcess().divergence(prepared)


def refused(packed: PackedSweep) -> tuple[str, str]:
    reply = Worker().open(packed)
    assert reply.keys() == {"error", "message", "node"} and "\n" not in reply["message"]
    return reply["error"], reply["message"]


def test_another_version_is_refused(packed: PackedSweep) -> None:
    versions = {**packed["versions"], "transformers": "4.0"}
    assert refused({**packed, "versions": versions}) == (
        "RunError",
        f"another version of transformers; got {packed['versions']['transformers']!r}; allowed: 4.0, the sweep's",
    )


def test_a_damaged_intervention_is_refused(packed: PackedSweep) -> None:
    cut = copy.deepcopy(packed)
    cut["interventions"][0]["bytes"] = cut["interventions"][0]["bytes"][:-40]
    assert refused(cut)[0] == "InterventionError"
    swapped = copy.deepcopy(packed)
    controls = [entry for entry in swapped["interventions"] if entry["method"] == "random"]
    controls[0]["bytes"] = controls[1]["bytes"]
    kind, message = refused(swapped)
    assert kind == "InterventionError" and "is not what was sent" in message


def test_another_model_at_the_same_place_is_refused(packed: PackedSweep, tmp_path: Path) -> None:
    other = {**packed["config"], "model": str(save_llama(tmp_path / "tiny", seed=1))}
    kind, message = refused({**packed, "config": other})
    assert kind == "RunError" and "another model here than where the sweep was begun" in message


def test_a_model_that_is_not_there_is_refused(packed: PackedSweep, tmp_path: Path) -> None:
    kind, message = refused({**packed, "config": {**packed["config"], "model": str(tmp_path / "none")}})
    assert kind == "ConfigError" and "cannot load the model" in message


def test_a_lack_of_memory_says_what_to_do(
    opened: Worker, prepared: PreparedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has ...")

    monkeypatch.setattr("lm_eval_cna.sweep.answers.compute", short)
    reply = opened.compute(pack_batch(prepared.plan.batches[0]))
    assert reply["error"] == "RunError" and reply["message"].startswith(
        "out of memory: CUDA out of memory; give a smaller"
    )


def test_a_bug_is_raised(opened: Worker) -> None:
    with pytest.raises(KeyError):
        opened.compute({})
    assert workers.reply_of(lambda: 1) == {"value": 1}


def test_a_model_without_its_weights_is_described_as_before(model: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    config = transformers.AutoConfig.from_pretrained(model, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(tied)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(tied)
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    prepared = prepare(check_sweep(parse_config(values(tied, tmp_path / "run", methods=["cna", "caa"])), manager))

    def described() -> list[Any]:
        plan, lm = prepared.plan, prepared.lm
        settings = list(zip(plan.settings, plan.modes, strict=True))
        return [
            lm.get_model_info(),
            [lm.steering_info(setting, mode) for setting, mode in settings],
            [lm.fingerprint_of(setting, mode) for setting, mode in settings],
            lm.apply_chat_template([{"role": "user", "content": "cake"}]),
        ]

    before = described()
    free_weights(prepared)
    assert described() == before and before[2] == prepared.plan.contexts
    assert {parameter.device.type for parameter in prepared.lm.module.parameters()} == {"meta"}


def test_a_missing_ray_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"--ray needs the package ray; pip install 'lm-eval-cna\[ray\]'"),
        cluster("local"),
    ):
        pass
