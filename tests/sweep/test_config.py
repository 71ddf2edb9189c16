"""A sweep's configuration: every field checked, every message one line that names the field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.sweep.config import DEFAULT_MULTIPLIERS, DEFAULT_TASKS, parse_config, parse_numbers, read_config

LEAST: dict[str, Any] = {"model": "m", "output": "out"}


def message(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def yaml_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "sweep.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_model_and_output_are_enough() -> None:
    config = parse_config(LEAST)
    assert config.multipliers == DEFAULT_MULTIPLIERS == (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    assert tuple(task.task for task in config.tasks) == DEFAULT_TASKS
    assert config.compared == ("cna", "caa", "random") and config.random == 19 and config.contrast == "refusal"
    assert config.controlled_at == (0.0, 2.0) and config.output == Path("out")


@pytest.mark.parametrize(
    ("given_files", "methods"),
    [
        ({}, ("cna", "caa", "random")),
        ({"circuit": "c"}, ("cna", "random")),
        ({"vectors": "v"}, ("cna", "caa", "random")),
        ({"circuit": "c", "vectors": "v"}, ("cna", "caa", "random")),
    ],
)
def test_caa_is_compared_where_its_vectors_can_be_had(given_files: dict[str, str], methods: tuple[str, ...]) -> None:
    assert parse_config({**LEAST, **given_files}).compared == methods


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": "m"}, ["output", "required", "run directory"]),
        ({"output": "out"}, ["model", "required"]),
        ({**LEAST, "model": ""}, ["model", "at least 1 character"]),
        ({**LEAST, "colour": "blue"}, ["colour", "not permitted", "'blue'"]),
        ({**LEAST, "methods": ["cna", "dog"]}, ["methods.1", "'dog'", "'caa-residual'", "what is compared"]),
        ({**LEAST, "methods": []}, ["methods must not be empty"]),
        ({**LEAST, "circuit": "c", "methods": ["caa"]}, ["caa needs vectors"]),
        ({**LEAST, "circuit": "c", "methods": ["cna", "caa-residual"]}, ["caa-residual needs vectors"]),
        ({**LEAST, "circuit": "c", "methods": ["random-vectors"]}, ["random-vectors needs vectors"]),
        ({**LEAST, "fraction": 0}, ["fraction", "greater than 0", "got 0"]),
        ({**LEAST, "top_k": [10, 0]}, ["top_k.1", "greater than or equal to 1"]),
        ({**LEAST, "random": -1}, ["random", "-1"]),
        ({**LEAST, "multipliers": []}, ["multipliers", "at least 1"]),
        ({**LEAST, "multipliers": [0, float("nan")]}, ["multipliers.1", "finite", "nan"]),
        ({**LEAST, "multipliers": ["abc"]}, ["multipliers.0", "number", "'abc'", "1 is the baseline"]),
        ({**LEAST, "tasks": []}, ["tasks", "at least 1"]),
        ({**LEAST, "tasks": ["a", {"task": "a", "num_fewshot": 5}]}, ["a task is named more than once"]),
        ({**LEAST, "tasks": [{"task": "a", "shots": 5}]}, ["tasks.0.shots", "not permitted"]),
        ({**LEAST, "limit": 0}, ["limit", "greater than or equal to 1"]),
        ({**LEAST, "mode": "up"}, ["mode", "'auto', 'rows', 'fold' or 'hook'", "'up'"]),
        ({**LEAST, "model_args": {"pretrained": "other"}}, ["model_args: pretrained is set by the sweep itself"]),
        ({**LEAST, "model_args": {"batch_size": 0}}, ["model_args: batch_size is a whole number from 1, or auto"]),
        ({**LEAST, "match": "size"}, ["match", "'layer' or 'activation'"]),
        ({**LEAST, "model_args": "dtype=float32"}, ["model_args", "dictionary"]),
        ({"fraction": 2}, ["and 2 more"]),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_field(values: dict[str, Any], says: list[str]) -> None:
    text = message(values)
    for part in says:
        assert part in text, text


def test_a_long_value_is_cut() -> None:
    assert len(message({**LEAST, "multipliers": "9" * 10_000})) < 500


def test_tasks_in_three_spellings() -> None:
    by_flag = parse_config({**LEAST, "tasks": "a,b"})
    assert by_flag == parse_config({**LEAST, "tasks": ["a", {"task": "b"}]})
    spec = parse_config({**LEAST, "tasks": [{"task": "a", "num_fewshot": 5, "chat_template": False}]}).tasks[0]
    assert (spec.num_fewshot, spec.chat_template, spec.controls) == (5, False, None)


@pytest.mark.parametrize("field", ["wandb_args", "wandb_config_args", "trackio_args", "hf_hub_log_args"])
def test_loggers_in_lm_evals_spelling_or_as_a_mapping(field: str) -> None:
    given = parse_config({**LEAST, field: "project=p,push=True"})
    assert getattr(given, field) == {"project": "p", "push": True}
    assert given == parse_config({**LEAST, field: {"project": "p", "push": True}})
    assert "secret" not in message({**LEAST, field: "secret"})


def test_order_and_repetition_do_not_matter() -> None:
    config = parse_config({**LEAST, "multipliers": [2, 0.5, 0, 0.5, -0.0], "top_k": [9, 3, 9], "methods": ["cna"] * 2})
    assert config.multipliers == (0.0, 0.5, 2.0) and str(config.multipliers[0]) == "0.0"
    assert config.top_k == (3, 9) and config.methods == ("cna",)


@pytest.mark.parametrize(
    ("multipliers", "chosen", "expected"),
    [
        ([0, 0.5, 1, 2], None, (0.0, 2.0)),
        ([-1, 0, 3], None, (0.0, 3.0)),
        ([0.5, 0.75], None, (0.5, 0.75)),
        ([0.5, 1], None, (0.5,)),
        ([1], None, ()),
        ([0], None, (0.0,)),
        ([0, 1, 2], [0], (0.0,)),
        ([0, 1, 2], [2, 1, 0.5], (0.5, 2.0)),
        ([0, 1, 2], [], ()),
    ],
)
def test_controls_are_asked_at_the_ends(
    multipliers: list[float], chosen: list[float] | None, expected: tuple[float, ...]
) -> None:
    config = parse_config({**LEAST, "multipliers": multipliers, "control_multipliers": chosen})
    assert config.controlled_at == expected


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9))
def test_controls_never_stand_at_the_baseline_nor_outside_the_range(multipliers: list[float]) -> None:
    config = parse_config({**LEAST, "multipliers": multipliers})
    assert 1.0 not in config.controlled_at
    assert set(config.controlled_at) <= set(config.multipliers)


@pytest.mark.parametrize(
    ("given_too", "said"),
    [
        ({"circuit": "c.json"}, "for one that is given: `discover --folds`"),
        ({"methods": ["caa", "random-vectors"]}, "a circuit that the sweep finds"),
        ({"folds": 1}, "folds: Input should be greater than or equal to 2"),
    ],
)
def test_folds_are_of_a_circuit_that_the_sweep_finds(given_too: dict[str, Any], said: str) -> None:
    assert said in message({**LEAST, "folds": 5, **given_too})
    assert parse_config({**LEAST, "folds": 5}).folds == 5 and parse_config(LEAST).folds is None


# Files


def test_the_example_of_the_design(tmp_path: Path) -> None:
    text = """
model: Qwen/Qwen2.5-1.5B-Instruct
model_args: {dtype: bfloat16, batch_size: auto}
contrast: refusal            # or circuit: FILE and vectors: FILE
methods: [cna, caa, random]
random: 19
multipliers: [0, 0.25, 0.5, 0.75, 1, 1.5, 2]
tasks:
  - jbb_harmful_refusal
  - {task: mmlu, num_fewshot: 5, chat_template: false}
judge: {model: local-chat-completions, model_args: {model: meta-llama/Llama-3.3-70B-Instruct, base_url: "http://j/v1"}}
output: results/runs/qwen-1.5b
"""
    config = parse_config(read_config(yaml_file(tmp_path, text)))
    assert config.model_args == {"dtype": "bfloat16", "batch_size": "auto"}
    assert [(spec.task, spec.num_fewshot, spec.chat_template) for spec in config.tasks] == [
        ("jbb_harmful_refusal", None, None),
        ("mmlu", 5, False),
    ]
    assert config.judge is not None and config.judge.model == "local-chat-completions"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "mapping"),
        ("- a\n- b", "mapping"),
        ("just words", "mapping"),
        ("1: a", "a key that is not text"),
        ("a: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        (b"a: \xff\xfe", "is not YAML"),
        ("a: " + "[" * 3000, "is not YAML"),
        ("a: !!python/object/apply:os.system [echo]", "is not YAML"),
        ("a: 2020-13-45", "is not YAML"),
        ("a: !!int ''", "is not YAML"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool maybe", "is not YAML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = yaml_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file.*missing\.yaml"):
        read_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match=r"too large.*262,144 bytes"):
        read_config(yaml_file(tmp_path, "#" * (2**20 + 1)))


# Flags


def test_numbers_of_a_flag() -> None:
    assert parse_numbers("--multipliers", "0,0.5, 2,-1,1e-3") == (0.0, 0.5, 2.0, -1.0, 0.001)


@pytest.mark.parametrize("text", ["abc", "0,,1", "", "0,1,", "nan", "1,inf", "-inf", "0;1", "1e999"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--multipliers: not a number; got .*; allowed: finite numbers"):
        parse_numbers("--multipliers", text)


def test_importable_without_torch() -> None:
    # An import that fails, and no entry in sys.modules: scipy takes any entry for the library.
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import lm_eval_cna.sweep.config, lm_eval_cna.results.cells, lm_eval_cna.results.directory\n"
        "import lm_eval_cna.results.summary, lm_eval_cna.report.page, lm_eval_cna.cli.terminal, lm_eval_cna.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
