"""Repeats a finished sweep from its manifest, and compares the two runs. Importable without torch.

In float32 on a CPU, with the same library versions, both summaries are equal to the last digit. Elsewhere rounding
differs with batches and kernels, so single answers may change; the comparison names what differs between the machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.judging.judge_run import is_judges
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import check_hash, read_plan
from lm_eval_cna.results.summary import Summary, read_summary
from lm_eval_cna.sweep.config import SweepConfig, parse_config

#: Fields that name a given file, and the copy of it that a run keeps.
_GIVEN = {"circuit": "circuit.json", "vectors": "vectors.safetensors"}


@dataclass(frozen=True)
class Difference:
    """A number that differs between the runs; None where a run does not have it."""

    cell: str
    task: str
    metric: str
    first: float | None
    again: float | None


@dataclass(frozen=True)
class RepeatComparison:
    """Two runs of one plan."""

    compared: int
    """How many numbers were compared."""
    differences: tuple[Difference, ...]
    """Those that differ, the largest change first."""
    interventions: tuple[str, ...]
    """Files of the run directory whose circuits, vectors or controls differ."""
    circumstances: tuple[tuple[str, str, str], ...]
    """What else differs between the runs: (what, first, again)."""
    left_out: int
    """How many numbers were not compared, since the judge is not asked again."""

    @property
    def same(self) -> bool:
        """Whether all numbers and interventions are the same."""
        return not self.differences and not self.interventions


def config_of(first: RunDirectory, output: Path) -> SweepConfig:
    """The configuration that repeats a run, without its judge, whose questions may cost money.

    A circuit or vectors that were given are taken from the copies that the run kept.

    Raises:
        RunError: this is no run directory, its manifest is damaged, or `output` is the run itself.
        ConfigError: the manifest holds a configuration that this version does not take.
    """
    plan = first.manifest()["plan"]
    if output.resolve() == first.path.resolve():
        raise RunError("a repeat in the directory of the first run compares nothing", do="choose another --output")
    values: dict[str, Any] = {name: plan[name] for name in SweepConfig.model_fields if name in plan}
    for field, name in _GIVEN.items():
        if values.get(field) is not None and first.has(name):
            kept = first.path / name
            check_hash(first, read_plan(first), name, read_intervention(kept).sha256)
            values[field] = str(kept)
    return parse_config({**values, "output": output})


def compare_runs(first: RunDirectory, again: RunDirectory) -> RepeatComparison:
    """Compare two runs: their summaries number by number, their interventions and their machines.

    Raises:
        RunError: one of them is not finished, or damaged.
    """
    one, two = read_plan(first), read_plan(again)
    left, right = _numbers(read_summary(first)), _numbers(read_summary(again))
    keys = [key for key in dict.fromkeys([*left, *right]) if not (key[1] in one.judged and is_judges(key[2]))]
    differences = [
        Difference(*key, left.get(key), right.get(key)) for key in keys if not _equal(left.get(key), right.get(key))
    ]
    return RepeatComparison(
        compared=len(keys),
        differences=tuple(sorted(differences, key=_size, reverse=True)),
        interventions=_unequal(one.interventions, two.interventions),
        circumstances=tuple(
            (what, _shown(a.get(what)), _shown(b.get(what)))
            for a, b in ((_circumstances(first.manifest()), _circumstances(again.manifest())),)
            for what in dict.fromkeys([*a, *b])
            if a.get(what) != b.get(what)
        ),
        left_out=len({*left, *right}) - len(keys),
    )


def _numbers(summary: Summary) -> dict[tuple[str, str, str], float]:
    return {(row.cell, row.task, row.metric): row.value for row in summary.measured}


def _equal(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and a != a and b != b)  # two NaNs are the same number here


def _size(difference: Difference) -> float:
    if difference.first is None or difference.again is None:
        return float("inf")
    return abs(difference.first - difference.again)


def _unequal(first: dict[str, str], again: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys([*first, *again]) if first.get(name) != again.get(name))


def _circumstances(manifest: dict[str, Any]) -> dict[str, Any]:
    """What can change a number although the plan is the same."""
    plan, machine = manifest["plan"], manifest.get("machine", {})
    return {
        **machine,
        "dtype": manifest.get("architecture", {}).get("dtype"),
        "rows of a batch": plan.get("rows"),
        "weights": plan.get("weights_sha256"),
        "tasks": json_sha256(plan.get("tasks")),
    }


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
