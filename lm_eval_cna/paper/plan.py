"""What to run for a table: each model's tasks and sweep configuration, and how they differ from the authors'."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm_eval_cna.contrast.loading import find_contrast, load_contrast
from lm_eval_cna.contrast.sources import read_spec
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.jsonl import jsonl_text, read_jsonl
from lm_eval_cna.judging.config import JudgeConfig
from lm_eval_cna.organism.recipe import CIRCUIT_FRACTION
from lm_eval_cna.paper.presets import (
    PAPER_FRACTION,
    SCRIPTS_EXCLUDED,
    SCRIPTS_TOP_K,
    Preset,
    PresetTask,
    Protocol,
    caa_multiplier,
)
from lm_eval_cna.paper.targets import Target
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.results.directory import RunDirectory

_MMLU_SUBTASKS = 57

_MAX_BYTES = 64 * 2**20  # of a file of prompts


@dataclass(frozen=True)
class PaperRequest:
    """What the user asks for."""

    preset: Preset
    """The table."""
    protocol: Protocol
    """"corrected" follows the paper's text, "as-published" its scripts."""
    targets: list[Target]
    """The models."""
    output: Path
    """Directory of the run directories, paper.json and paper.md."""
    prompts: Path | None = None
    """File of evaluation prompts, one a line, or JSON Lines with `prompt`."""
    contrast: str | None = None
    """Contrast set in place of the table's."""
    limit: int | None = None
    """Most documents of each task; None is all."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for loading the model, as cna-hf takes them."""
    judge: JudgeConfig | None = None
    """Judge of the responses, in tables that need one."""

    def contrast_of(self, target: Target) -> str:
        """Name or file of the contrast set for discovery."""
        return self.contrast or ("organism" if target.organism else self.preset.contrast)

    def dtype_of(self, target: Target) -> str:
        """The model's precision: bfloat16 as in the paper, float32 for the organism."""
        return str(self.model_args.get("dtype", "float32" if target.organism else "bfloat16"))

    def fraction_of(self, target: Target) -> float:
        """Circuit size as a share of all neurons, for protocols that fix no number."""
        return CIRCUIT_FRACTION if target.organism else PAPER_FRACTION

    @property
    def top_k(self) -> int | None:
        """Circuit size in neurons; None where it is a share of all neurons."""
        return SCRIPTS_TOP_K if self.protocol == "as-published" else None

    @property
    def universal_filter(self) -> bool:
        """Whether discovery leaves out neurons that are active on all kinds of text."""
        return self.protocol == "corrected"

    @property
    def excluded_layers(self) -> tuple[int, ...]:
        """Layers that discovery leaves out."""
        return SCRIPTS_EXCLUDED if self.protocol == "as-published" else ()

    def tasks_of(self, target: Target) -> list[tuple[PresetTask, str, str]]:
        """The tasks of a model, as (planned task, lm-eval's task name, per-document metric)."""
        found = []
        for asked in self.preset.asked:
            if self.prompts is not None and asked.task.startswith("jbb_"):
                found.append((asked, prompts_task(asked, self.prompts), asked.metric))
            elif not target.organism:
                found.append((asked, asked.task, asked.metric))
            elif asked.organism is not None:
                found.append((asked, asked.organism, asked.organism_metric or asked.metric))
        return found

    def documents(self, asked: PresetTask) -> int:
        """Number of documents that will be asked, known without loading the task."""
        whole = asked.documents
        if self.prompts is not None and asked.task.startswith("jbb_"):
            whole = len(read_prompts(self.prompts))
        if self.limit is None:
            return whole
        return min(whole, self.limit * (_MMLU_SUBTASKS if asked.task.startswith("mmlu") else 1))

    def multipliers(self) -> list[float]:
        """Multipliers of the sweep: 1 is the baseline, 0 is CNA's ablation; CAA adds its full strength."""
        return sorted({0.0, 1.0, caa_multiplier(self.protocol)} if "caa" in self.preset.methods else {0.0, 1.0})

    def cells(self) -> int:
        """Number of cells, that is, how often each task runs on a model."""
        return 1 + len(self.preset.methods) * (len(self.multipliers()) - 1)

    def sweep(self, target: Target, path: str) -> dict[str, Any]:
        """The configuration of a model's sweep."""
        size: dict[str, Any] = {"fraction": self.fraction_of(target)} if self.top_k is None else {"top_k": [self.top_k]}
        return {
            "model": path,
            "output": self.output / target.slug,
            "model_args": {"dtype": self.dtype_of(target), **self.model_args},
            "contrast": self.contrast_of(target),
            "methods": list(self.preset.methods),
            "random": 0,
            "multipliers": self.multipliers(),
            "excluded_layers": list(self.excluded_layers),
            "universal_filter": self.universal_filter,
            "harmless_kl": False,
            "limit": self.limit,
            "tasks": [
                {
                    "task": name,
                    "num_fewshot": None if target.organism else asked.num_fewshot,
                    "chat_template": target.chat_template and (asked.chat or target.organism),
                }
                for asked, name, _ in self.tasks_of(target)
            ],
            "judge": self.judge,
            **size,
        }

    def differs(self, target: Target) -> tuple[str, ...]:
        """How a model's rows differ from the authors' setup, in words; empty where they are like for like."""
        if target.organism:
            size = "" if self.protocol == "as-published" else f"; circuit of {100 * CIRCUIT_FRACTION:g} %"
            return (f"the organism: a check of the machinery, with its own prompts and tasks{size}",)
        found = []
        if self.preset.own_prompts and self.prompts is None:
            found.append("prompts: JBB-Behaviors, not the authors' own (--prompts FILE)")
        if not self.preset.own_prompts and self.prompts is not None:
            found.append("prompts: of --prompts, where the table has JBB-Behaviors")
        if self.preset.own_contrast and self.contrast is None:
            found.append(f"discovery prompts: {self.preset.contrast}, not the authors' own (--contrast FILE)")
        if not self.preset.own_contrast and self.contrast is not None:
            found.append("discovery prompts: of --contrast, not the paper's eight and eight")
        if "caa" in self.preset.methods and self.protocol == "corrected":
            found.append("direction of CAA: suppressing, where the published one amplifies")
        if self.preset.judged and self.protocol == "corrected":
            found.append("judge's question: the StrongREJECT rubric, where the script rates from 1 to 10")
        if self.limit is not None:
            found.append(f"only {self.limit} documents a task")
        return tuple(found)


def check(request: PaperRequest) -> None:
    """Find what is wrong in the user's files before anything is loaded.

    Raises:
        ConfigError, ContrastError: a file is missing or not what it should be.
    """
    preset = request.preset
    if request.prompts is not None:
        if not any(asked.task.startswith("jbb_") for asked in preset.asked):
            raise ConfigError(f"--prompts has no meaning for {preset.table}", do="leave it out")
        read_prompts(request.prompts)
    if request.judge is not None and not preset.judged:
        raise ConfigError(f"--judge-model has no meaning for {preset.table}", do="leave it out")
    if request.contrast is not None:
        contrast_prompts(request.contrast)


def contrast_prompts(name: str) -> int:
    """Number of prompts in a contrast set, without downloading anything."""
    path = find_contrast(name)
    if path.suffix == ".jsonl":
        return len(load_contrast(path).prompts)
    spec = read_spec(path)
    return sum(source.choose or 0 for source in (spec.positive, spec.negative))


def read_prompts(path: Path) -> list[str]:
    """Read evaluation prompts: JSON Lines with `prompt`, or one prompt on each line.

    Raises:
        ConfigError: the file cannot be read, holds no prompt, or has a line without one.
    """
    try:
        if path.suffix == ".jsonl":
            prompts = [_prompt(path, *line) for line in read_jsonl(path, limit=_MAX_BYTES)]
        else:
            text = read_whole(path, limit=_MAX_BYTES).decode("utf-8")
            prompts = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts: cannot read {path}: {error}") from error
    if not prompts:
        raise ConfigError("--prompts: the file holds no prompt", got=str(path))
    return prompts


def _prompt(path: Path, number: int, document: Any) -> str:
    prompt = document.get("prompt") if isinstance(document, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"--prompts: {path}, line {number}", got=document, allowed='{"prompt": text} on each line')
    return prompt


def prompts_task(asked: PresetTask, path: Path) -> str:
    """Task name for the user's prompts; it holds their hash, so results for other prompts are never reused."""
    digest = hashlib.sha256(json.dumps(read_prompts(path)).encode()).hexdigest()[:8]
    return f"paper_{'judged' if asked.task == 'jbb_strongreject' else 'prompts'}_{digest}"


def write_prompt_tasks(request: PaperRequest) -> Path | None:
    """Write the task files of the user's prompts; returns their folder, or None without --prompts."""
    if request.prompts is None:
        return None
    directory = RunDirectory(request.output)
    rows = jsonl_text({"prompt": prompt} for prompt in read_prompts(request.prompts))
    for asked in request.preset.asked:
        if not asked.task.startswith("jbb_"):
            continue
        name = prompts_task(asked, request.prompts)
        folder = request.output / "prompts"
        directory.write_text(f"prompts/{name}.jsonl", rows)
        (ours,) = tasks_dir().rglob(f"{asked.task}.yaml")
        task = {
            "include": str(ours),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {"harmful": str((folder / f"{name}.jsonl").resolve())},
                "cache_dir": str((folder / "cache").resolve()),
            },
            "doc_to_text": "{{prompt}}",
        }
        directory.write_text(f"prompts/{name}.yaml", yaml.safe_dump(task, sort_keys=False))
    return request.output / "prompts"
