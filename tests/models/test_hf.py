"""cna-hf against stock hf, under lm-eval's own evaluation, its cache, and two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import CacheError, ConfigError, InterventionError, SteeringError
from lm_eval_cna.interventions.compatibility import describe_model
from lm_eval_cna.models.hf import CNAHFLM
from tests.helpers.checkpoints import save_llama
from tests.helpers.interventions import circuit, vectors
from tests.helpers.requests import instances
from tests.helpers.scores import alike

TEXTS = ["How do I bake a cake?", "Hello", "A longer prompt, so that the batch needs padding on its left side."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def circuit_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm = CNAHFLM(pretrained=str(checkpoint), device="cpu")
    chosen = circuit(lm.architecture, per_layer=8)
    pairs = [(neuron.layer, neuron.index) for neuron in chosen.neurons]
    info = describe_model(lm.architecture, pairs, id=str(checkpoint), revision="main")
    path = tmp_path_factory.mktemp("circuit") / "circuit.json"
    chosen.model_copy(update={"model": info}).write(path)
    return path


def requests(kind: str) -> list[Instance]:
    arguments: dict[str, Any] = {
        "loglikelihood": [(text, " yes") for text in TEXTS] + [(text, " no, not at all") for text in TEXTS],
        "loglikelihood_rolling": [(text,) for text in TEXTS],
        "generate_until": [(text, {"until": [], "max_gen_toks": 12, "do_sample": False}) for text in TEXTS],
    }
    return instances(kind, arguments[kind])


def answers(lm: HFLM) -> dict[str, Any]:
    kinds = ("loglikelihood", "loglikelihood_rolling", "generate_until")
    return {kind: getattr(lm, kind)(requests(kind), disable_tqdm=True) for kind in kinds}


@pytest.mark.parametrize("arguments", [{}, {"multiplier": 1}, {"multiplier": "1.0", "mode": "hook"}])
def test_baselines_equal_stock_hf_to_the_last_digit(
    checkpoint: Path, circuit_file: Path, arguments: dict[str, Any]
) -> None:
    stock = HFLM(pretrained=str(checkpoint), device="cpu", batch_size=2)
    if arguments:
        arguments = {**arguments, "circuit": str(circuit_file)}
    ours = CNAHFLM(pretrained=str(checkpoint), device="cpu", batch_size=2, **arguments)
    assert answers(ours) == answers(stock)


def test_every_request_type_is_steered_and_undone(checkpoint: Path, circuit_file: Path) -> None:
    lm = CNAHFLM(pretrained=str(checkpoint), circuit=str(circuit_file), multiplier=0, device="cpu", batch_size=2)
    steered = answers(lm)
    lm.unsteer()
    untouched = answers(lm)
    for kind, values in steered.items():
        assert not alike(values, untouched[kind]), kind
    assert untouched == answers(HFLM(pretrained=str(checkpoint), device="cpu", batch_size=2))


def test_the_circuit_file_names_the_model(checkpoint: Path, circuit_file: Path) -> None:
    lm = CNAHFLM.create_from_arg_string(f"circuit={circuit_file}", {"device": "cpu", "batch_size": 4})
    assert lm.model.name_or_path == str(checkpoint)
    assert lm.setting.multiplier == 0.0
    assert lm.warnings == ()


def test_another_shape_is_refused_and_another_model_of_the_same_is_a_warning_in_the_results(
    circuit_file: Path, tmp_path: Path
) -> None:
    wide = save_llama(tmp_path / "wide", width=96)
    with pytest.raises(InterventionError, match="mlp_width 64; got 'LlamaForCausalLM of mlp_width 96'"):
        CNAHFLM(pretrained=str(wide), circuit=str(circuit_file), device="cpu")
    other = save_llama(tmp_path / "other", seed=1)
    lm = CNAHFLM(pretrained=str(other), circuit=str(circuit_file), device="cpu")
    assert any("not those of the model" in warning for warning in lm.get_model_info()["cna"]["warnings"])


def test_vectors_and_scale(checkpoint: Path, tmp_path: Path) -> None:
    lm = CNAHFLM(pretrained=str(checkpoint), device="cpu")
    path = tmp_path / "vectors.safetensors"
    vectors(lm.architecture).write(path)
    told = [
        answers(CNAHFLM(pretrained=str(checkpoint), circuit=str(path), multiplier=m, scale=scale, device="cpu"))
        for m, scale in ((0.5, 1), (0, 0.5))
    ]
    assert told[0] == told[1] != answers(lm)
    with pytest.raises(SteeringError, match="vectors cannot be folded"):
        CNAHFLM(pretrained=str(checkpoint), circuit=str(path), mode="fold", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "no model is named"),
        ({"circuit": "absent.json"}, InterventionError, "no such intervention file; got 'absent.json'"),
        ({"circuit": "FILE", "multiplier": "abc"}, ConfigError, "multiplier; got 'abc'; allowed: a finite number"),
        ({"circuit": "FILE", "multiplier": "nan"}, ConfigError, "multiplier; got 'nan'"),
        ({"circuit": "FILE", "scale": True}, ConfigError, "scale; got True"),
        ({"circuit": "FILE", "mode": "bend"}, ConfigError, "allowed: auto, fold, hook"),
        ({"circuit": "hf://a/b"}, InterventionError, "hf://owner/repo/file@revision"),
    ],
)
def test_bad_arguments(circuit_file: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    if arguments.get("circuit") == "FILE":
        arguments = {**arguments, "circuit": str(circuit_file)}
    with pytest.raises(error) as caught:
        CNAHFLM(device="cpu", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_edited_neuron_changes_the_fingerprint(checkpoint: Path) -> None:
    lm = CNAHFLM(pretrained=str(checkpoint), device="cpu")
    edited = CNAHFLM(pretrained=str(checkpoint), device="cpu")
    with torch.no_grad():
        edited.model.model.layers[1].mlp.gate_proj.weight[17] *= 1.001
    again = CNAHFLM(pretrained=edited.model, tokenizer=edited.tokenizer)
    assert again.fingerprint != lm.fingerprint
    assert CNAHFLM(pretrained=str(checkpoint), device="cpu").fingerprint == lm.fingerprint


def task(folder: Path) -> Any:
    """A task of two prompts that needs no data set."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"Goal": text}) + "\n" for text in TEXTS[:2]))
    return {
        "task": "two_prompts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{Goal}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [{"metric": "bypass"}],
    }


def evaluate(lm: Any, config: Any, cache: Path | None, **kwargs: Any) -> Any:
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(
        lm, tasks=[config], task_manager=manager, use_cache=None if cache is None else str(cache), **kwargs
    )


def test_a_cache_serves_one_setting_only(checkpoint: Path, circuit_file: Path, tmp_path: Path) -> None:
    config, cache = task(tmp_path), tmp_path / "cache"

    def at(multiplier: float) -> CNAHFLM:
        return CNAHFLM(circuit=str(circuit_file), multiplier=multiplier, device="cpu")

    first = evaluate(at(0), config, cache)
    assert evaluate(at(0), config, cache)["samples"] == first["samples"]
    assert first["config"]["cna"]["multiplier"] == 0.0
    assert first["config"]["cna"]["fingerprint"] == at(0).fingerprint
    with pytest.raises(CacheError, match=r"belongs to .* cna at multiplier 0; got '.* at multiplier 2'; .*--use_cache"):
        evaluate(at(2), config, cache)

    stock = tmp_path / "stock"
    evaluate(HFLM(pretrained=str(checkpoint), device="cpu"), config, stock)
    with pytest.raises(CacheError, match="unknown origin"):
        evaluate(at(0), config, stock)


WORKER = """
import json, os, sys
from lm_eval_cna.models.hf import CNAHFLM
import lm_eval
from lm_eval.tasks import TaskManager
checkpoint, circuit, config, out = sys.argv[1:]
lm = CNAHFLM(circuit=circuit, multiplier=0, device="cpu")
asked = []
generate = lm.generate_until
lm.generate_until = lambda requests: asked.extend(r.doc_id for r in requests) or generate(requests)
manager = TaskManager(include_defaults=False)
results = lm_eval.simple_evaluate(lm, tasks=json.load(open(config)), task_manager=manager, bootstrap_iters=0)
rank = os.environ.get("RANK", "0")
record = {"world_size": lm.world_size, "asked": asked}
if results is not None:
    for task, samples in results["samples"].items():
        record[task] = [s["resps"] for s in sorted(samples, key=lambda s: s["doc_id"])]
json.dump(record, open(f"{out}.{rank}", "w"))
"""


def test_two_cpu_processes_share_the_requests(checkpoint: Path, circuit_file: Path, tmp_path: Path) -> None:
    script, config, out = tmp_path / "worker.py", tmp_path / "task.json", tmp_path / "out"
    out.mkdir()
    script.write_text(WORKER)
    texts = task(tmp_path)
    chosen = {"task": "a_choice", "output_type": "multiple_choice", "doc_to_target": 1, "doc_to_choice": ["no", "yes"]}
    without = ("generation_kwargs", "metric_list")
    choice = {name: value for name, value in texts.items() if name not in without} | chosen
    config.write_text(json.dumps([texts, choice]))
    arguments = [str(script), str(checkpoint), str(circuit_file), str(config)]
    subprocess.run([sys.executable, *arguments, str(out / "alone")], check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617"]
    subprocess.run([*launcher, *arguments, str(out / "pair")], check=True, timeout=300)
    alone = json.loads((out / "alone.0").read_text())
    pair = [json.loads((out / f"pair.{rank}").read_text()) for rank in (0, 1)]
    assert [record["world_size"] for record in pair] == [2, 2]
    assert alone["world_size"] == 1
    assert sorted(pair[0]["asked"] + pair[1]["asked"]) == sorted(alone["asked"]) == [0, 1]
    assert pair[0]["two_prompts"] == alone["two_prompts"] and alike(pair[0]["a_choice"], alone["a_choice"])
