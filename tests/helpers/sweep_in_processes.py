"""A process of a sweep that torchrun started: python -m tests.helpers.sweep_in_processes CONFIG.json OUT [fault].

What the command does, with the organism's tasks alone, which saves seconds. Each process writes to OUT.<rank>.json how
many batches it computed and how it ended.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import CNAError, RunError
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep import answers
from lm_eval_cna.sweep.config import parse_config
from lm_eval_cna.sweep.executors import base
from lm_eval_cna.sweep.executors.processes import Processes, ProcessExecutor, follow
from lm_eval_cna.sweep.runner import run_sweep

compute_batches = answers.compute
computed = 0


def counting(fault: bool) -> Any:
    def compute(lm: Any, settings: Any, plan: Any, prompts: Any, *, mode: str) -> Any:
        global computed
        computed += len(plan)
        if fault and computed == 2:
            raise RunError("a fault on purpose")
        return compute_batches(lm, settings, plan, prompts, mode=mode)

    return compute


def main(config: str, out: str, fault: str = "") -> None:
    checked = parse_config(json.loads(Path(config).read_text(encoding="utf-8")))
    ended = "well"
    with Processes() as processes:
        compute = counting(fault == str(processes.rank))
        base.compute = answers.compute = compute  # the leader's, and what the others import when they need it
        try:
            if processes.leads:
                manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
                run_sweep(checked, task_manager=manager, executor=ProcessExecutor(processes))
            else:
                follow(processes, checked)
        except CNAError as error:
            ended = f"{type(error).__name__}: {error}"
    Path(f"{out}.{processes.rank}.json").write_text(json.dumps({"computed": computed, "ended": ended}))


if __name__ == "__main__":
    main(*sys.argv[1:])
