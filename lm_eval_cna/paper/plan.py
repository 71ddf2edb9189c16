"""What a table takes: the tasks and sweep configuration of each model, and the differences that a row must confess."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.json_reader import load_json
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
    """Where text and scripts differ."""
    targets: list[Target]
    """The models."""
    output: Path
    """Directory of everything."""
    prompts: Path | None = None
    """File of evaluation prompts, one a line, or JSON Lines with `prompt`."""
    contrast: str | None = None
    """Contrast set in place of the table's."""
    limit: int | None = None
    """Documents a task."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of cna-hf."""
    judge: JudgeConfig | None = None
    """For judged tables."""

    def contrast_of(self, target: Target) -> str:
        """Name or file of the contrast set that a model's circuit is found with."""
        return self.contrast or ("organism" if target.organism else self.preset.contrast)

    def dtype_of(self, target: Target) -> str:
        """The model's precision: bfloat16 as in the paper, float32 for the organism."""
        return str(self.model_args.get("dtype", "float32" if target.organism else "bfloat16"))

    def fraction_of(self, target: Target) -> float:
        """The share of a model's neurons that its circuit has, where the protocol names no number of them."""
        return CIRCUIT_FRACTION if target.organism else PAPER_FRACTION

    @property
    def top_k(self) -> int | None:
        """How many neurons a circuit has; None where it is a share of the model's."""
        return SCRIPTS_TOP_K if self.protocol == "as-published" else None

    @property
    def universal_filter(self) -> bool:
        """Whether neurons that are active on everything are left out."""
        return self.protocol == "corrected"

    @property
    def excluded_layers(self) -> tuple[int, ...]:
        """Layers without circuit neurons."""
        return SCRIPTS_EXCLUDED if self.protocol == "as-published" else ()

    def tasks_of(self, target: Target) -> list[tuple[PresetTask, str, str]]:
        """The tasks of a model: as planned, lm-eval's name, and the metric per document."""
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
        """How many documents a task has, as far as anybody knows before it is loaded."""
        whole = asked.documents
        if self.prompts is not None and asked.task.startswith("jbb_"):
            whole = len(read_prompts(self.prompts))
        if self.limit is None:
            return whole
        return min(whole, self.limit * (_MMLU_SUBTASKS if asked.task.startswith("mmlu") else 1))

    def multipliers(self) -> list[float]:
        """Of the sweep: baseline, CNA at 0, and CAA's full strength."""
        return sorted({0.0, 1.0, caa_multiplier(self.protocol)} if "caa" in self.preset.methods else {0.0, 1.0})

    def cells(self) -> int:
        """How often every task is asked of a model."""
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
        """What keeps a model's rows from being like for like."""
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


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: JSON Lines with `prompt`, or one a line.

    Raises:
        ConfigError: the file cannot be read, or holds no prompt, or a line that is none.
    """
    try:
        text = read_whole(path, limit=_MAX_BYTES).decode("utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts: cannot read {path}: {error}") from error
    if not lines:
        raise ConfigError("--prompts: the file holds no prompt", got=str(path))
    if path.suffix != ".jsonl":
        return [line.strip() for line in lines]
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts.append(_prompt(load_json(line.encode())))
        except ValueError as error:
            allowed = '{"prompt": text} on each line'
            raise ConfigError(f"--prompts: {path}, prompt {number}", got=line, allowed=allowed) from error
    return prompts


def _prompt(document: Any) -> str:
    prompt = document.get("prompt") if isinstance(document, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("no prompt")
    return prompt


def prompts_task(asked: PresetTask, path: Path) -> str:
    """The name of the task that asks a user's prompts; other prompts, other name, so that no result is taken over."""
    digest = hashlib.sha256(json.dumps(read_prompts(path)).encode()).hexdigest()[:8]
    return f"paper_{'judged' if asked.task == 'jbb_strongreject' else 'prompts'}_{digest}"


def write_prompt_tasks(request: PaperRequest) -> Path | None:
    """Write the task files of the user's prompts into the output directory; None where there are none."""
    if request.prompts is None:
        return None
    directory = RunDirectory(request.output)
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in read_prompts(request.prompts)]
    for asked in request.preset.asked:
        if not asked.task.startswith("jbb_"):
            continue
        name = prompts_task(asked, request.prompts)
        folder = request.output / "prompts"
        directory.write_text(f"prompts/{name}.jsonl", "\n".join(rows) + "\n")
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
