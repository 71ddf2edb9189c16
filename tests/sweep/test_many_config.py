"""A file of many sweeps: what each run is, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.many_config import holds_runs, parse_runs


def parsed(values: dict[str, Any], **flags: Any) -> list[SweepConfig]:
    assert holds_runs(values)
    return parse_runs(values, lambda run: {**run, **flags})


def test_a_run_is_the_defaults_and_what_it_says_itself() -> None:
    values = {
        "output": "results/runs",
        "defaults": {"random": 3, "model_args": {"dtype": "bfloat16"}, "tasks": ["a"]},
        "runs": [
            {"model": "Qwen/Qwen2.5-1.5B-Instruct"},
            {"model": "/models/My Llama/", "random": 0, "model_args": {"batch_size": 8}},
            {"model": "x/y", "output": "elsewhere"},
        ],
    }
    first, second, third = parsed(values, limit=4)
    assert first.output == Path("results/runs/Qwen2.5-1.5B-Instruct") and first.random == 3
    assert second.output == Path("results/runs/My-Llama") and second.random == 0
    assert first.model_args == {"dtype": "bfloat16"} and second.model_args == {"batch_size": 8}, "as a whole"
    assert third.output == Path("elsewhere") and third.tasks[0].task == "a"
    assert {config.limit for config in (first, second, third)} == {4}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"runs": []}, r"runs is not a list of sweeps; got \[\]"),
        ({"runs": {"model": "m"}}, "runs is not a list of sweeps"),
        ({"runs": ["m"]}, r"runs\.0 is not a mapping of field names to values; got 'm'"),
        ({"runs": [{"model": "m"}]}, r"runs\.0: output: Field required"),
        ({"runs": [{"model": "m"}, {}], "output": "o"}, r"runs\.1: .*model: Field required"),
        ({"runs": [{"model": "m", "randm": 2}], "output": "o"}, r"runs\.0: randm: Extra inputs"),
        ({"runs": [{"model": "m"}], "random": 2}, "a file with runs; got 'random'; allowed: defaults, runs, output"),
        ({"runs": [{"model": "m"}], "defaults": 3}, "defaults is not a mapping"),
        ({"runs": [{"model": "a/m"}, {"model": "b/m"}], "output": "o"}, "several runs have one output; got '.*o/m'"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parsed(values)


@pytest.mark.parametrize("name", ["..", "/", ".", "a/..", "..."])
def test_a_model_does_not_lead_out_of_the_root(name: str) -> None:
    (run,) = parsed({"runs": [{"model": name}], "output": "root"})
    assert run.output == Path("root/model")
