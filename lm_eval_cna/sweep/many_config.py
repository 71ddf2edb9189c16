"""Reads a file of many sweeps: `defaults`, and `runs` with the fields of each. Importable without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.sweep.config import SweepConfig, parse_config

_FIELDS = ("defaults", "runs", "output")


def holds_runs(values: Mapping[str, Any]) -> bool:
    """Whether a configuration file is one of many sweeps."""
    return "runs" in values


def parse_runs(values: Mapping[str, Any], given: Callable[[dict[str, Any]], dict[str, Any]]) -> list[SweepConfig]:
    """The sweeps of a file.

    A run's field replaces the default's as a whole. A run without an output goes to a folder of the file's
    `output` that is named after the model.

    Args:
        values: the file's contents.
        given: adds the values of flags to a run's fields.

    Raises:
        ConfigError: a field is wrong; the message names the run and the field.
    """
    defaults, runs, root = values.get("defaults") or {}, values["runs"], values.get("output")
    strange = sorted(set(values) - set(_FIELDS))
    if strange:
        raise ConfigError(
            "a file with runs", got=strange[0], allowed=", ".join(_FIELDS), do="fields of all runs go under defaults"
        )
    if not _is_mapping(defaults):
        raise ConfigError("defaults is not a mapping of field names to values", got=type(defaults).__name__)
    if not isinstance(runs, list) or not runs:
        raise ConfigError("runs is not a list of sweeps", got=runs)
    parsed = [_parse_run(number, run, defaults, root, given) for number, run in enumerate(runs)]
    outputs = Counter(config.output.resolve() for config in parsed)
    twice = next((path for path, times in outputs.items() if times > 1), None)
    if twice is not None:
        raise ConfigError("several runs have one output", got=str(twice), do="give each an output of its own")
    return parsed


def _parse_run(
    number: int, run: Any, defaults: dict[str, Any], root: Any, given: Callable[[dict[str, Any]], dict[str, Any]]
) -> SweepConfig:
    if not _is_mapping(run):
        raise ConfigError(f"runs.{number} is not a mapping of field names to values", got=run)
    values = given({**defaults, **run})
    if "output" not in values and root is not None and isinstance(values.get("model"), str):
        values["output"] = Path(str(root)) / _folder(values["model"])
    try:
        return parse_config(values)
    except ConfigError as error:
        raise ConfigError(f"runs.{number}: {error}") from error


def _folder(model: str) -> str:
    """A model's name without its owner or its path, safe as the name of a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).lstrip(".")
    return name or "model"


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)
