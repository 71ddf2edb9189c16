"""A whole sweep on a tiny random model: cells are what lm-eval says, and a killed sweep goes on where it was."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import ConfigError, InterventionError, RunError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.report.page import write_report
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.responses import STORE_NAME
from lm_eval_cna.results.summary import read_summary
from lm_eval_cna.sweep import runner
from lm_eval_cna.sweep.config import SweepConfig, parse_config
from tests.helpers.checkpoints import save_llama
from tests.helpers.scores import alike
from tests.helpers.sweeps import small_sweep

pytestmark = pytest.mark.usefixtures("no_environment_report")

GENERATED, CHOSEN = "chat", "chat-uncontrolled"  # settings of the two tasks
KEYS = (
    "baseline",
    "cna-m0",
    "cna-m2",
    "caa-m0",
    "caa-m2",
    "random-s0-m0",
    "random-s0-m2",
    "random-s1-m0",
    "random-s1-m2",
)
EVALUATIONS = 9 + 5  # the knowledge task is not asked of controls
ASKED = 9 * 4 + 5 * 4 * 6  # four prompts of each cell, four questions of six answers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tiny")


def values(model: Path, output: Path, **more: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"model_args": {"device": "cpu", "batch_size": 8}, "harmless_kl": False}
    return small_sweep(model, output, **(own | more))


def config(model: Path, output: Path, **more: Any) -> SweepConfig:
    return parse_config(values(model, output, **more))


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int, str]]:
    return []


@pytest.fixture(scope="module")
def whole(
    model: Path, manager: TaskManager, tmp_path_factory: pytest.TempPathFactory, told: list[tuple[str, int, int, str]]
) -> RunDirectory:
    """A sweep that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return runner.run_sweep(
        config(model, output),
        task_manager=manager,
        progress=lambda stage, done, total, detail="": told.append((stage, done, total, detail)),
        command=["typed"],
    )


def quick(model: Path, output: Path, circuit: Path, **more: Any) -> SweepConfig:
    """A sweep without discovery: baseline and one cell."""
    kept = {"circuit": str(circuit), "methods": ["cna"], "multipliers": [0], "tasks": ["organism_knowledge"]}
    return config(model, output, **{**kept, **more})


@pytest.fixture(scope="module")
def circuit(whole: RunDirectory) -> Path:
    return whole.path / "circuit.json"


def cells(directory: RunDirectory) -> dict[str, Path]:
    folder = directory.path / "cells"
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.json"))}


def substance(results: dict[str, Any]) -> dict[str, Any]:
    """What was measured and said, without times and paths."""
    samples = {
        task: [{key: sample[key] for key in ("doc_id", "arguments", "resps", "filtered_resps")} for sample in of_task]
        for task, of_task in results["samples"].items()
    }
    return json.loads(json.dumps({"results": results["results"], "samples": samples}, default=str))


# What is in the directory


def test_every_cell_is_there_and_the_baseline_once(whole: RunDirectory) -> None:
    expected = {f"{key}/{GENERATED}" for key in KEYS}
    expected |= {f"{key}/{CHOSEN}" for key in KEYS if not key.startswith("random")}
    assert set(cells(whole)) == expected and len(expected) == EVALUATIONS
    for name in ("manifest.json", "summary.json", "circuit.json", "vectors.safetensors", "controls/random-1.json"):
        assert whole.has(name), name
    assert not [path for path in whole.path.rglob("*") if path.name.endswith(".tmp")]


def test_progress_counts_responses_then_cells(whole: RunDirectory, told: list[tuple[str, int, int, str]]) -> None:
    responses = [(done, total) for stage, done, total, _ in told if stage == "responses"]
    assert responses == sorted(responses) and responses[0] == (0, ASKED) and responses[-1] == (ASKED, ASKED)
    assert any(re.fullmatch(r"\d+ tokens/s", detail) for stage, _, _, detail in told if stage == "responses")
    assert [done for stage, done, _, _ in told if stage == "cells"] == list(range(EVALUATIONS + 1))


def test_the_manifest_says_how_to_repeat_it(whole: RunDirectory, model: Path) -> None:
    manifest = whole.manifest()
    plan = manifest["plan"]
    assert plan["model"] == str(model) and plan["multipliers"] == [0.0, 1.0, 2.0] and plan["limit"] == 4
    assert [cell["key"] for cell in plan["cells"]] == list(KEYS)
    assert plan["interventions"]["circuit.json"] == read_intervention(whole.path / "circuit.json").sha256
    assert manifest["architecture"]["num_layers"] == 2 and manifest["architecture"]["mlp_width"] == 64
    assert manifest["command"] == ["typed"]
    assert {"torch", "transformers", "lm_eval", "lm-eval-cna", "python"} <= manifest["machine"].keys()


def test_interventions_are_kept_and_controls_are_matched(whole: RunDirectory, model: Path) -> None:
    found = read_intervention(whole.path / "circuit.json")
    assert isinstance(found, Circuit) and len(found.neurons) == 6  # 5 % of 128
    assert found.discovery.contrast == "organism" and found.model.id == str(model)
    assert isinstance(read_intervention(whole.path / "vectors.safetensors"), Vectors)
    for seed in (0, 1):
        control = read_intervention(whole.path / "controls" / f"random-{seed}.json")
        assert isinstance(control, Circuit) and control.method == "random" and control.discovery.seed == seed
        assert [neuron.layer for neuron in control.neurons] == [neuron.layer for neuron in found.neurons]
        assert not {neuron[:2] for neuron in control.neurons} & {neuron[:2] for neuron in found.neurons}


def test_the_summary_is_what_lm_eval_reported(whole: RunDirectory) -> None:
    summary = read_summary(whole)
    for name, path in cells(whole).items():
        key = name.split("/")[0]
        for task, metrics in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            for metric, value in metrics.items():
                if metric.endswith(",none") and "_stderr" not in metric:
                    rows = [row for row in summary.measured if (row.cell, row.task) == (key, task)]
                    (row,) = [row for row in rows if row.metric == metric.removesuffix(",none")]
                    assert row.value == value and row.n == 4
    assert summary.values("organism_refusal", "changed_rate", method="baseline", multiplier=1.0) == [0.0]
    assert summary.values("organism_refusal", "changed_rate", method="cna", multiplier=2.0) > [0.0]
    assert len(summary.values("organism_refusal", "refusal_rate", method="random", multiplier=0.0)) == 2


# Cells are what lm-eval says


@pytest.mark.parametrize(
    ("key", "source", "multiplier"),
    [
        ("baseline", None, 1),
        ("cna-m0", "circuit.json", 0),
        ("cna-m2", "circuit.json", 2),
        ("caa-m2", "vectors.safetensors", 2),
        ("random-s1-m0", "controls/random-1.json", 0),
    ],
)
def test_a_cell_equals_a_direct_evaluation(
    whole: RunDirectory, model: Path, manager: TaskManager, key: str, source: str | None, multiplier: float
) -> None:
    given = {} if source is None else {"circuit": str(whole.path / source), "multiplier": multiplier}
    lm = CNAHFLM(pretrained=str(model), device="cpu", batch_size=8, **given)
    tasks = ["organism_refusal"] + ([] if key.startswith("random") else ["organism_knowledge"])
    direct = lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=4, apply_chat_template=True)
    assert direct is not None
    wanted = substance(direct)
    kept: dict[str, Any] = {"results": {}, "samples": {}}
    for setting in (GENERATED, CHOSEN)[: len(tasks)]:
        results = whole.read_json(whole.results_name(key, setting))
        for part in kept:
            kept[part] |= substance(results)[part]
        assert results["config"]["cna"]["multiplier"] == multiplier
        assert results["config"]["cna"]["weights_sha256"] == whole.manifest()["plan"]["weights_sha256"]
    assert alike(kept, wanted)


def test_cells_differ(whole: RunDirectory) -> None:
    said = {key: whole.read_json(whole.results_name(key, GENERATED))["samples"]["organism_refusal"] for key in KEYS}
    texts = {key: tuple(sample["resps"][0][0] for sample in samples) for key, samples in said.items()}
    assert texts["baseline"] not in [texts[key] for key in KEYS[1:]]
    assert len(set(texts.values())) == len(KEYS)


# Continuing


def test_a_finished_sweep_is_not_run_again(
    whole: RunDirectory, model: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: path.stat().st_mtime_ns for name, path in cells(whole).items()}
    manifest = (whole.path / "manifest.json").read_bytes()
    summary = (whole.path / "summary.json").read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(runner, "simple_evaluate", never)
    monkeypatch.setattr("lm_eval_cna.sweep.interventions.measure", never)
    runner.run_sweep(config(model, whole.path), task_manager=manager)
    assert {name: path.stat().st_mtime_ns for name, path in cells(whole).items()} == before
    assert (whole.path / "manifest.json").read_bytes() == manifest
    assert (whole.path / "summary.json").read_bytes() == summary


def assert_equal_runs(continued: RunDirectory, whole: RunDirectory) -> None:
    assert read_summary(continued) == read_summary(whole)
    for name, path in cells(whole).items():
        ours = json.loads((continued.path / "cells" / f"{name}.json").read_text(encoding="utf-8"))
        assert substance(ours) == substance(json.loads(path.read_text(encoding="utf-8"))), name


def stored(directory: RunDirectory) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Every row of the response store."""
    with closing(sqlite3.connect(directory.path / STORE_NAME)) as database:
        return {row[:2]: row[2:] for row in database.execute("SELECT * FROM responses")}


def test_the_store_has_every_response_once(whole: RunDirectory) -> None:
    contexts = [cell["context"] for cell in whole.manifest()["plan"]["cells"]]
    assert len(stored(whole)) == ASKED and len(set(contexts)) == len(KEYS)
    assert {context for context, _ in stored(whole)} == set(contexts)


def test_an_interrupted_sweep_computes_only_what_is_missing(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path / "run")

    def interrupt(stage: str, done: int, total: int, detail: str = "") -> None:
        if stage == "responses" and done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_sweep(config(model, directory.path), task_manager=manager, progress=interrupt)
    finished = stored(directory)
    assert len(finished) == 24 and cells(directory) == {} and not directory.has("summary.json")
    with pytest.raises(RunError, match=r"no summary\.json"):
        write_report([directory], directory.path)

    computed: list[tuple[str, str]] = []
    original = runner.ResponseStore.put

    def counted(self: Any, responses: Any) -> None:
        computed.extend(responses)
        original(self, responses)

    monkeypatch.setattr(runner.ResponseStore, "put", counted)
    runner.run_sweep(config(model, directory.path), task_manager=manager)
    assert not finished.keys() & set(computed) and len(computed) == len(set(computed)) == ASKED - 24
    assert stored(directory) == stored(whole)
    assert_equal_runs(directory, whole)


def test_a_sweep_interrupted_while_evaluating_goes_on(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path / "run")

    def interrupt(stage: str, done: int, total: int, detail: str = "") -> None:
        if stage == "cells" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_sweep(config(model, directory.path), task_manager=manager, progress=interrupt)
    finished = {name: path.stat().st_mtime_ns for name, path in cells(directory).items()}
    assert len(finished) == 5
    monkeypatch.setattr(runner.ResponseStore, "put", lambda *_: pytest.fail("computed again"))
    runner.run_sweep(config(model, directory.path), task_manager=manager)
    assert finished == {name: cells(directory)[name].stat().st_mtime_ns for name in finished}
    assert_equal_runs(directory, whole)


def test_a_damaged_response_is_computed_again(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path
) -> None:
    copy = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, copy.path)
    shutil.rmtree(copy.path / "cells")
    with closing(sqlite3.connect(copy.path / STORE_NAME)) as database, database:
        database.execute("UPDATE responses SET value = '\"I refuse\"' WHERE tokens > 0")
    runner.run_sweep(config(model, copy.path), task_manager=manager)
    assert stored(copy) == stored(whole)
    assert_equal_runs(copy, whole)


@pytest.mark.parametrize(("mode", "methods"), [("fold", ["cna", "random"]), ("hook", ["cna", "caa", "random"])])
def test_every_mode_gives_the_same_texts(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path, mode: str, methods: list[str]
) -> None:
    asked = config(model, tmp_path / "run", mode=mode, methods=methods)
    directory = runner.run_sweep(asked, task_manager=manager)
    for key in (entry["key"] for entry in directory.manifest()["plan"]["cells"]):
        ours, packed = (run.read_json(run.results_name(key, GENERATED)) for run in (directory, whole))
        assert substance(ours)["samples"] == substance(packed)["samples"]
        assert ours["config"]["cna"]["mode"] == ("none" if key == "baseline" else mode)


def test_sampled_answers_are_the_same_however_often_a_sweep_is_interrupted(
    model: Path, manager: TaskManager, circuit: Path, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "sampled.yaml").write_text(SAMPLED, encoding="utf-8")
    ours = TaskManager(include_path=str(tasks), include_defaults=False)
    runs = []
    for name in ("a", "b"):
        directory = RunDirectory(tmp_path / name)
        asked = quick(model, directory.path, circuit, tasks=["sampled"], multipliers=[0, 2])

        def interrupt(
            stage: str, done: int, total: int, detail: str = "", after: int = 8 if name == "b" else 999
        ) -> None:
            if stage == "responses" and done >= after:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            runner.run_sweep(asked, task_manager=ours, progress=interrupt)
        runs.append(runner.run_sweep(asked, task_manager=ours))
    assert stored(runs[0]) == stored(runs[1])
    assert_equal_runs(*runs)
    answers = [sample["resps"][0] for sample in runs[0].read_json("cells/baseline/chat.json")["samples"]["sampled"]]
    assert any(first != second for first, second in answers), "two repeats are two draws"


SAMPLED = """
task: sampled
custom_dataset: !function lm_eval_cna.organism.tasks.heldout_benign
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: ""
repeats: 2
generation_kwargs: {until: [], do_sample: true, temperature: 1.0, max_gen_toks: 8}
metric_list: [{metric: bypass}]
"""

KILLED = """
import json, sys
import torch.utils.collect_env
torch.utils.collect_env.get_pretty_env_info = lambda: "a test"
from lm_eval.tasks import TaskManager
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.runner import run_sweep

def tell(stage, done, total, detail=""):
    print(stage, done, flush=True)

manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
run_sweep(parse_config(json.loads(sys.argv[1])), task_manager=manager, progress=tell)
"""


@pytest.mark.parametrize("moment", ["responses 16", "cells 4"])
def test_a_sweep_killed_with_signal_9_goes_on(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path, moment: str
) -> None:
    directory = RunDirectory(tmp_path / "run")
    asked = json.dumps(values(model, directory.path))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, asked], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.strip() == moment:
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    before = stored(directory)
    assert 16 <= len(before) <= ASKED
    runner.run_sweep(config(model, directory.path), task_manager=manager)
    assert stored(directory) == stored(whole)
    assert_equal_runs(directory, whole)


# Given files


def test_a_given_circuit_is_used_and_kept(
    model: Path, manager: TaskManager, circuit: Path, whole: RunDirectory, tmp_path: Path
) -> None:
    directory = runner.run_sweep(quick(model, tmp_path / "run", circuit), task_manager=manager)
    assert set(cells(directory)) == {f"baseline/{CHOSEN}", f"cna-m0/{CHOSEN}"}
    assert read_intervention(directory.path / "circuit.json") == read_intervention(circuit)
    assert not directory.has("vectors.safetensors")
    ours = directory.read_json(directory.results_name("cna-m0", CHOSEN))
    assert substance(ours) == substance(whole.read_json(whole.results_name("cna-m0", CHOSEN)))


def test_sizes_are_prefixes(model: Path, manager: TaskManager, circuit: Path, tmp_path: Path) -> None:
    asked = quick(model, tmp_path / "run", circuit, top_k=[2, 6], methods=["cna", "random"], random=1)
    directory = runner.run_sweep(asked, task_manager=manager)
    whole = read_intervention(circuit)
    assert isinstance(whole, Circuit)
    for size in (2, 6):
        info = directory.read_json(directory.results_name(f"cna-k{size}-m0", CHOSEN))["config"]["cna"]
        assert info["intervention_sha256"] == whole.prefix(size).sha256


def test_settings_of_a_task(model: Path, manager: TaskManager, circuit: Path, tmp_path: Path) -> None:
    tasks = [
        {"task": "organism_refusal", "chat_template": False, "controls": False},
        {"task": "organism_knowledge", "controls": True},
    ]
    asked = quick(model, tmp_path / "run", circuit, tasks=tasks, methods=["cna", "random"], random=1)
    directory = runner.run_sweep(asked, task_manager=manager)
    assert set(cells(directory)) == {
        "baseline/chat",
        "baseline/plain-uncontrolled",
        "cna-m0/chat",
        "cna-m0/plain-uncontrolled",
        "random-s0-m0/chat",
    }
    plain = directory.read_json("cells/baseline/plain-uncontrolled.json")
    assert "<|user|>" not in str(plain["samples"]["organism_refusal"][0]["arguments"])
    chat = directory.read_json("cells/baseline/chat.json")
    assert "<|user|>" in str(chat["samples"]["organism_knowledge"][0]["arguments"])


# Refusals


@pytest.mark.parametrize("change", [{"random": 3}, {"contrast": "refusal-8"}])
def test_another_plan_in_the_same_directory_is_refused_and_leaves_nothing_behind(
    whole: RunDirectory, model: Path, manager: TaskManager, change: dict[str, Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.name != ".lock"}
    with pytest.raises(RunError, match=f"another {next(iter(change))}"):
        runner.run_sweep(config(model, whole.path, **change), task_manager=manager)
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.name != ".lock"} == before


def test_another_model_of_the_same_shape_is_refused(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path
) -> None:
    other = save_llama(tmp_path / "tiny", seed=1)
    kept = model.rename(model.with_name("aside"))
    try:
        other.rename(model)
        with pytest.raises(RunError, match="another weights_sha256"):
            runner.run_sweep(config(model, whole.path), task_manager=manager)
        model.rename(other)
    finally:
        kept.rename(model)


def test_an_unknown_task_is_refused_before_the_model_is_loaded(manager: TaskManager, tmp_path: Path) -> None:
    asked = config(tmp_path / "no-such-model", tmp_path / "run", tasks=["organism_refusl"])
    with pytest.raises(ConfigError, match=r"unknown task; got 'organism_refusl'; allowed: .*organism_refusal"):
        runner.run_sweep(asked, task_manager=manager)


def test_a_second_sweep_in_the_directory_is_refused(whole: RunDirectory, model: Path, manager: TaskManager) -> None:
    with whole.lock(), pytest.raises(RunError, match="another process is running a sweep"):
        runner.run_sweep(config(model, whole.path), task_manager=manager)


def test_files_of_the_wrong_kind_are_refused(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path
) -> None:
    circuit, vectors = str(whole.path / "circuit.json"), str(whole.path / "vectors.safetensors")
    with pytest.raises(ConfigError, match="cna needs a circuit; got 'a caa file'"):
        runner.run_sweep(config(model, tmp_path / "a", circuit=vectors, methods=["cna"]), task_manager=manager)
    with pytest.raises(ConfigError, match="caa needs vectors; got 'a cna file'"):
        asked = config(model, tmp_path / "b", circuit=circuit, vectors=circuit, methods=["caa"])
        runner.run_sweep(asked, task_manager=manager)


def test_a_circuit_of_another_shape_is_refused(circuit: Path, manager: TaskManager, tmp_path: Path) -> None:
    wide = save_llama(tmp_path / "wide", width=96)
    with pytest.raises(InterventionError, match="mlp_width 64; got 'LlamaForCausalLM of mlp_width 96'"):
        runner.run_sweep(quick(wide, tmp_path / "run", circuit), task_manager=manager)


@pytest.mark.parametrize("arguments", [{"mode": "hook"}, {"pretrained": "x"}, {"no_such_argument": 1}])
def test_model_args_that_are_not_to_be_given_are_refused(
    model: Path, manager: TaskManager, circuit: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        asked = quick(model, tmp_path / "run", circuit, model_args={"device": "cpu", **arguments})
        runner.run_sweep(asked, task_manager=manager)


def test_a_size_above_the_circuits_is_refused_before_anything_is_evaluated(
    model: Path, manager: TaskManager, circuit: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(InterventionError, match="circuit size"):
        runner.run_sweep(quick(model, directory.path, circuit, top_k=[2, 7]), task_manager=manager)
    assert cells(directory) == {}


def test_a_circuit_left_by_a_sweep_that_never_began_is_not_taken_for_the_given_one(
    model: Path, manager: TaskManager, circuit: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    whole = read_intervention(circuit)
    assert isinstance(whole, Circuit)
    whole.prefix(1).write(directory.path / "circuit.json")  # killed after discovery, before the manifest
    runner.run_sweep(quick(model, directory.path, circuit), task_manager=manager)
    assert directory.manifest()["plan"]["interventions"]["circuit.json"] == whole.sha256
    assert read_intervention(directory.path / "circuit.json") == whole


def test_controls_matched_by_activation(model: Path, manager: TaskManager, circuit: Path, tmp_path: Path) -> None:
    asked = quick(model, tmp_path / "run", circuit, methods=["cna", "random"], random=1, match="activation")
    directory = runner.run_sweep(asked, task_manager=manager)
    assert read_intervention(directory.path / "controls" / "random-0.json").discovery.match == "activation"


@pytest.mark.parametrize("kind", ["random", "random-vectors"])
def test_a_control_is_not_reported_as_a_circuit(
    whole: RunDirectory, model: Path, manager: TaskManager, tmp_path: Path, kind: str
) -> None:
    if kind == "random":
        asked = quick(model, tmp_path / "run", whole.path / "controls" / "random-0.json")
    else:
        vectors = read_intervention(whole.path / "vectors.safetensors")
        path = tmp_path / "v.safetensors"
        vectors.model_copy(update={"method": kind}).write(path)
        asked = quick(model, tmp_path / "run", whole.path / "circuit.json", vectors=str(path), methods=["caa"])
    with pytest.raises(ConfigError):
        runner.run_sweep(asked, task_manager=manager)


# What follows


def test_harmless_kl(model: Path, manager: TaskManager, circuit: Path, tmp_path: Path) -> None:
    asked = quick(model, tmp_path / "run", circuit, harmless_kl=True)
    summary = read_summary(runner.run_sweep(asked, task_manager=manager))
    rows = {row.cell: row.value for row in summary.measured if row.metric == "harmless_kl"}
    assert rows.keys() == {"baseline", "cna-m0"}
    assert rows["baseline"] == 0.0 < rows["cna-m0"]


def test_the_report_of_a_sweep(whole: RunDirectory, tmp_path: Path) -> None:
    text = write_report([whole], tmp_path).read_text(encoding="utf-8")
    assert "range of 2 random controls" in text and "too few for a test" in text and "ignificant" not in text
    assert "organism" in text and "### organism\\_refusal" in text and "### organism\\_knowledge" in text
    assert (tmp_path / "figures" / "run-metrics.png").is_file() and "figures/run-metrics.png" in text
    assert (tmp_path / "report.html").is_file() and list((tmp_path / "tables").glob("*.tex"))
