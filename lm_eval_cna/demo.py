"""The demo: train the organism, find its circuit, sweep it and report, without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval_cna.files.progress import Progress, named, silent
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.organism.recipe import CIRCUIT_FRACTION
from lm_eval_cna.organism.store import OrganismPaths, ensure_organism
from lm_eval_cna.report.page import write_report
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep.config import parse_config

_TASKS = ("organism_refusal", "organism_benign", "organism_knowledge")
# The instruct organism gets the whole comparison; base and diffuse get a smaller one.
_PLANS: dict[str, dict[str, Any]] = {
    "instruct": {"methods": ["cna", "caa", "random"], "random": 19},
    "base": {"methods": ["cna", "random"], "random": 3, "multipliers": [0, 1, 2]},
    "diffuse": {"methods": ["cna", "random"], "random": 19, "multipliers": [0, 0.5, 1, 2], "control_multipliers": [0]},
}
_PREFACE = """\
The organism is a tiny model that the project trains itself. It validates the harness against a known truth and says
nothing about refusal in real models. `instruct` refuses through {planted} planted neurons; `base` is the same model
before that; `diffuse` was fine-tuned in the ordinary way, so its refusal sits in no small circuit.

Circuits are {share:g} % of the neurons, because {least:g} % of so small a model is four of them. Of the {planted}
planted neurons the circuit of {size} recovered {recovered}."""


def run_demo(
    output: Path,
    *,
    progress: Progress = silent,
    command: list[str] | None = None,
    samples: bool = True,
) -> Path:
    """Train the organism if it is not cached, sweep its three variants, write the report, and return report.md's path.

    `output` gets one run directory per variant and the report. `command`, what the user typed, goes into the manifests;
    without `samples` the page holds no prompts and completions.
    """
    organism = ensure_organism(progress=progress)
    from lm_eval.tasks import TaskManager  # after training: indexing lm-eval's tasks takes seconds

    from lm_eval_cna import plugin
    from lm_eval_cna.sweep.runner import run_sweep

    progress("indexing lm-eval's tasks", 0, 0)
    plugin.register()
    manager = TaskManager()
    directories: list[RunDirectory] = []
    for variant, plan in _PLANS.items():
        config = parse_config(
            {
                "model": str(getattr(organism, variant)),
                "model_args": {"device": "cpu", "dtype": "float32"},
                "contrast": "organism",
                "fraction": CIRCUIT_FRACTION,
                "tasks": list(_TASKS),
                "harmless_kl": False,  # its prompts are plain English, which the organism cannot read
                "output": output / variant,
                **plan,
            }
        )
        told = named(variant, progress)
        directories.append(run_sweep(config, progress=told, task_manager=manager, command=command))
    return write_report(directories, output, preface=_preface(organism, output / "instruct"), samples=samples)


def _preface(organism: OrganismPaths, run: Path) -> str:
    circuit = read_intervention(run / "circuit.json")
    assert isinstance(circuit, Circuit)
    recovered = {(neuron.layer, neuron.index) for neuron in circuit.neurons} & set(organism.planted)
    return _PREFACE.format(
        planted=len(organism.planted),
        share=100 * CIRCUIT_FRACTION,
        least=0.1,
        size=len(circuit.neurons),
        recovered=len(recovered),
    )
