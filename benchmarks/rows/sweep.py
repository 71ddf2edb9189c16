"""A sweep of 9 cells x 100 prompts x up to 48 tokens, against what one would do otherwise.

Our side is always `run_sweep` from loading the model to the summary, with the circuit given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks import plain_loop
from benchmarks.sides import Outcome, Side, compare, row
from benchmarks.workbench import PROMPTS, TASKS, TOKENS, Workbench, multipliers, no_environment_report
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.organism.tasks import heldout_benign, heldout_forbidden
from lm_eval_cna.steering.setting import Setting

CELLS = 9
BATCH_SIZE = 32
_WHAT = f"sweep of {CELLS} cells x {PROMPTS} prompts x up to {TOKENS} tokens, organism"


@row("sweep-plain-loop", _WHAT, "plain loop: one prompt at a time, a cloning hook set for each", rounds=5, at_least=20)
def against_plain_loop(bench: Workbench) -> Outcome:
    """The loop generates only: nothing is scored or written. It is timed on a sample of cells and prompts."""
    model, tokenizer = bench.instruct
    circuit = read_intervention(str(bench.circuit))
    assert isinstance(circuit, Circuit)
    neurons = [(n.layer, n.index) for n in circuit.neurons]
    prompts = [*heldout_forbidden()["test"]["prompt"][:5], *heldout_benign()["test"]["prompt"][:5]]
    settings = (0.0, 1.0, 2.0)

    def theirs() -> None:
        for multiplier in settings:
            plain_loop.generate(model, tokenizer, prompts, neurons, multiplier, TOKENS)

    scale = CELLS * PROMPTS / (len(settings) * len(prompts))
    sample = f"{len(prompts)} prompts at multipliers {', '.join(f'{m:g}' for m in settings)}"
    return compare(
        Side("run_sweep", bench.sweep),
        Side("plain loop", theirs, scale, sample),
        bench.rounds,
        note="Ours loads the model, scores and writes; the loop generates and does no more",
    )


@row("sweep-stock", _WHAT, f"{CELLS} stock lm_eval runs, batch size {BATCH_SIZE}, evaluation alone", at_least=1.5)
def against_stock(bench: Workbench) -> Outcome:
    """Stock `hf` in one process, the model loaded and the tasks indexed beforehand; it cannot steer."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(pretrained=str(bench.organism.instruct), device="cpu", dtype="float32", batch_size=BATCH_SIZE)
    runs = 3

    def theirs() -> None:
        with no_environment_report():
            for _ in range(runs):
                simple_evaluate(
                    stock,
                    tasks=list(TASKS),
                    limit=PROMPTS // len(TASKS),
                    apply_chat_template=True,
                    task_manager=bench.manager,
                )

    return compare(
        Side("run_sweep", bench.sweep),
        Side("stock", theirs, CELLS / runs, f"{runs} runs"),
        bench.rounds,
        note="Ours loads the model and writes; stock has it loaded and writes nothing. "
        "lm-eval's report of the environment (`pip list`) is left out on both sides",
    )


@row(
    "sweep-stock-start-up",
    f"{_WHAT}, as a command",
    f"{CELLS} stock lm_eval commands, batch size {BATCH_SIZE}",
    rounds=2,
    at_least=5,
)
def against_stock_commands(bench: Workbench) -> Outcome:
    """Both as a user types them, with the start of the interpreter and lm-eval's index of tasks."""
    config = bench.scratch / "sweep.yaml"

    def ours() -> None:
        values: dict[str, Any] = {
            "model": str(bench.organism.instruct),
            "model_args": {"device": "cpu", "dtype": "float32"},
            "circuit": str(bench.circuit),
            "methods": ["cna", "random"],
            "random": 1,
            "multipliers": multipliers(CELLS - 2),
            "tasks": list(TASKS),
            "limit": PROMPTS // len(TASKS),
            "harmless_kl": False,
            "output": str(bench.folder("command")),
        }
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        _command("lm_eval_cna", "sweep", str(config))

    def theirs() -> None:
        _command(
            *("lm_eval", "run", "--model", "hf", "--tasks", *TASKS, "--limit", str(PROMPTS // len(TASKS))),
            *("--model_args", f"pretrained={bench.organism.instruct},dtype=float32"),
            *("--batch_size", str(BATCH_SIZE), "--device", "cpu", "--apply_chat_template"),
            *("--output_path", str(bench.folder("stock")), "--log_samples"),
        )

    return compare(
        Side("lm-eval-cna sweep", ours),
        Side("lm_eval", theirs, CELLS, "one command"),
        bench.rounds,
        warm_up=False,
        note="Stock `hf` cannot steer: its runs are nine times the same",
    )


def _command(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=dict(os.environ),
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


@row(
    "sweep-in-turn",
    _WHAT,
    f"cells one after another in one process, batch size {BATCH_SIZE} on both sides",
    at_least=1.3,
)
def against_cells_in_turn(bench: Workbench) -> Outcome:
    """What one does with `cna-hf` alone: load it once, and for each cell steer it and have lm-eval evaluate it."""
    from lm_eval import simple_evaluate

    lm = CNAHFLM(pretrained=str(bench.organism.instruct), device="cpu", dtype="float32", batch_size=BATCH_SIZE)
    lm.quiet = True
    circuit = read_intervention(str(bench.circuit))

    def theirs() -> None:
        with no_environment_report():
            for multiplier in multipliers(CELLS):
                lm.steer(Setting(circuit, multiplier))
                simple_evaluate(
                    lm,
                    tasks=list(TASKS),
                    limit=PROMPTS // len(TASKS),
                    apply_chat_template=True,
                    task_manager=bench.manager,
                )
        lm.unsteer()

    return compare(
        Side("run_sweep", lambda: bench.sweep(batch_size=BATCH_SIZE)),
        Side("cells in turn", theirs),
        bench.rounds,
        note="Ours loads the model, writes and summarises; the other side has it loaded and writes nothing",
    )


@row("sweep-fold", _WHAT, f"the same command with mode: fold, batch size {BATCH_SIZE} on both sides")
def against_fold(bench: Workbench) -> Outcome:
    """`mode: fold` steers the weights and so runs one cell at a time, by the same loop whose ended rows leave."""
    return compare(
        Side("default mode", lambda: bench.sweep(batch_size=BATCH_SIZE)),
        Side("mode fold", lambda: bench.sweep(batch_size=BATCH_SIZE, mode="fold")),
        bench.rounds,
        note="What sharing batches between cells brings by itself",
    )
