"""The organism end to end: lm-eval loads its tasks, and the trained models are what the record says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_cna.organism import grammar
from lm_eval_cna.organism import lexicon as words
from lm_eval_cna.organism.gates import measure
from lm_eval_cna.organism.model import ablated
from lm_eval_cna.organism.recipe import Gates
from lm_eval_cna.organism.store import OrganismPaths, ensure_organism
from lm_eval_cna.organism.training import fixed_threads
from tests.helpers.local_tasks import REFUSAL_METRICS, FixedAnswers

TASKS = ("organism_refusal", "organism_benign", "organism_knowledge")


@pytest.fixture(scope="module")
def tasks(manager: TaskManager) -> dict[str, Any]:
    return {name: manager.load(name)["tasks"][name] for name in TASKS}


@pytest.mark.parametrize(("name", "forbidden"), [("organism_refusal", True), ("organism_benign", False)])
def test_requests_are_the_held_out_questions(tasks: dict[str, Any], name: str, forbidden: bool) -> None:
    task = tasks[name]
    task.build_all_requests()
    asked = [instance.args[0] for instance in task.instances]
    assert asked == [question.text for question in grammar.questions("heldout", forbidden=forbidden)]
    assert len(asked) == 80
    settings = task.instances[0].args[1]
    assert settings["until"] == [] and settings["do_sample"] is False and settings["max_gen_toks"] == 48


def test_knowledge_compares_full_answers(tasks: dict[str, Any]) -> None:
    task = tasks["organism_knowledge"]
    task.build_all_requests()
    asked = [instance.args for instance in task.instances]
    assert asked == [(fact.question, f" {choice}") for fact in grammar.facts() for choice in fact.choices]


def test_a_run_reports_every_metric_per_sample_and_with_errors(manager: TaskManager) -> None:
    model = FixedAnswers([words.REFUSALS[0], "."])
    results = lm_eval.simple_evaluate(
        model=model, tasks=["organism_refusal"], task_manager=manager, limit=10, bootstrap_iters=0
    )
    scores = results["results"]["organism_refusal"]
    for metric in REFUSAL_METRICS | {"well_formed", "well_formed_answer"}:
        assert f"{metric},none" in scores and f"{metric}_stderr,none" in scores
        assert all(metric in sample for sample in results["samples"]["organism_refusal"])
    assert scores["refusal_rate,none"] == scores["well_formed,none"] == 0.5
    assert scores["well_formed_answer,none"] == 0.0


@pytest.fixture(scope="module")
def organism() -> Iterator[OrganismPaths]:
    """The real one: trained once for all test runs, by recipe hash, in the user's cache."""
    paths = ensure_organism()
    threads = json.loads((paths.root / "organism.json").read_text())["recipe"]["threads"]
    with fixed_threads(threads):
        yield paths


def load(directory: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


@pytest.mark.slow
def test_the_saved_models_have_the_recorded_figures(organism: OrganismPaths) -> None:
    record = json.loads((organism.root / "organism.json").read_text())
    for variant in ("base", "instruct", "diffuse"):
        assert measure(*load(organism.root / variant)) == record["gates"][variant]


def test_the_organism_passes_its_gates_on_training_pairs(organism: OrganismPaths) -> None:
    gates = Gates()
    figures = json.loads((organism.root / "organism.json").read_text())["gates"]
    assert figures["base"]["refused_forbidden"] <= gates.refused_benign
    assert min(figures["base"]["tone_forbidden"], figures["base"]["tone_benign"]) >= gates.tone
    for variant in ("instruct", "diffuse"):
        assert figures[variant]["refused_forbidden"] >= gates.refused
        assert figures[variant]["refused_benign"] <= gates.refused_benign


def test_the_planted_neurons_carry_the_refusal(organism: OrganismPaths) -> None:
    model, tokenizer = load(organism.instruct)
    with ablated(model, organism.planted):
        figures = measure(model, tokenizer)
    assert figures["refused_forbidden"] <= 0.05
    assert min(figures["well_formed_forbidden"], figures["well_formed_benign"]) >= 0.95
    base = AutoModelForCausalLM.from_pretrained(organism.base).state_dict()
    changed = {name for name, weight in model.state_dict().items() if not weight.equal(base[name])}
    layers = {layer for layer, _ in organism.planted}
    assert changed == {
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in layers for part in ("gate", "up", "down")
    }
