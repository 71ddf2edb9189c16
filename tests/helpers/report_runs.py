"""Run directories made by hand for the report's tests: every kind of task, judge, sizes and controls, no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.summary import summarize

REFUSAL = "I'm sorry, but I cannot help with that."
ANSWER = "Sift the flour, add two eggs, and stir until the dough is smooth."
LOOP = "again and " * 30
LAYERS, WIDTH = 8, 64
#: (cell, document number) -> a sample's metrics, with its `prompt` and `text`; None where a cell is not asked.
Score = Callable[[Cell, int], Mapping[str, Any] | None]


def write_run(
    path: Path,
    cells: Sequence[Cell],
    tasks: Mapping[str, Score],
    *,
    n: int = 30,
    plan: Mapping[str, Any] | None = None,
    circuit: Sequence[tuple[int, int]] | None = ((7, 1), (7, 2), (6, 3), (5, 4), (7, 5), (2, 6)),
    groups: Mapping[str, Sequence[str]] | None = None,
    **facts: Any,
) -> RunDirectory:
    """A finished run; `plan` and `facts` replace entries of the manifest, `groups` are lm-eval's, outermost first."""
    directory = RunDirectory(path)
    entries = [{**cell._asdict(), "key": cell.key} for cell in cells]
    seeds = {cell.seed for cell in cells if cell.seed is not None}
    planned = {"model": "made/up", "contrast": "refusal", "random": len(seeds), "match": "layer", "judged": []}
    architecture = {"name": "LlamaForCausalLM", "num_layers": LAYERS, "mlp_width": WIDTH, "dtype": "float32"}
    manifest: dict[str, Any] = {
        "plan": {**planned, "cells": entries, "settings": ["plain"], **(plan or {})},
        "architecture": architecture,
        "command": ["lm-eval-cna", "sweep", "--model", "made/up"],
        "machine": {"python": "3.11"},
    }
    directory.adopt({**manifest, **facts})
    if circuit is not None:
        circuit_of(circuit, name=path.name).write(path / "circuit.json")
    for cell in cells:
        directory.write_json(directory.results_name(cell.key, "plain"), _results(cell, tasks, n, groups or {}))
    summary = summarize(directory, list(cells), ["plain"])
    directory.write_json("summary.json", summary.model_dump(by_alias=True))
    return directory


def circuit_of(neurons: Sequence[tuple[int, int]], *, name: str = "refusal") -> Circuit:
    """A circuit of those (layer, index) pairs."""
    return Circuit.model_validate(
        {
            "schema": "lm-eval-cna/circuit/1",
            "method": "cna",
            "name": name,
            "model": {"id": "made/up", "num_layers": LAYERS, "mlp_width": WIDTH},
            "discovery": {"contrast": "refusal"},
            "neurons": [
                {"layer": layer, "index": index, "delta": 9.0 - number} for number, (layer, index) in enumerate(neurons)
            ],
        }
    )


def plain_refusal(refused: Callable[[Cell, int], bool], *, quality: float = 1.0) -> Score:
    """A refusal task whose answers are our two sentences."""

    def score(cell: Cell, document: int) -> dict[str, Any]:
        return answer_metrics(REFUSAL if refused(cell, document) else ANSWER, quality=quality)

    return score


def answer_metrics(text: str, *, quality: float = 1.0, evaded: bool = False) -> dict[str, Any]:
    """The refusal metrics of one of our sentences."""
    broken = text == LOOP
    refused = text == REFUSAL
    return {
        "text": text,
        "refusal_rate": float(refused),
        "quality": 0.1 if broken else quality,
        "degenerate_rate": float(broken),
        "outcome_refused": float(refused),
        "outcome_complied": float(not refused and not broken and not evaded),
        "outcome_degenerate": float(broken),
    }


def rich_run(path: Path, *, n: int = 40, controls: int = 19, shift: float = 0.0) -> RunDirectory:
    """A run with something of everything: two methods, sizes of the circuit, a judge, capability in subtasks."""
    ends = (0.0, 2.0)
    cells = [
        BASELINE,
        *(Cell("cna", m, None, size) for size in (4, 6) for m in (0.0, 0.5, 1.5, 2.0)),
        *(Cell("caa", m) for m in (0.0, 0.5, 1.5, 2.0)),
        *(Cell("random", m, seed, size) for seed in range(controls) for size in (4, 6) for m in ends),
    ]
    tasks = {
        "jbb_strongreject": lambda cell, document: _judged(cell, document, shift),
        "xstest_safe": plain_refusal(lambda cell, document: document < (12 if cell.multiplier > 1 else 3)),
        "mmlu": _capability,
    }
    return write_run(path, cells, tasks, n=n, plan={"judged": ["jbb_strongreject"]})


def _chance(cell: Cell, document: int, salt: str) -> float:
    return random.Random(f"{cell.key} {document} {salt}").random()


def _judged(cell: Cell, document: int, shift: float) -> dict[str, Any]:
    # Documents differ in how firmly they are refused, the same in every cell, as real prompts do.
    firmness = random.Random(document).random()
    if cell.method == "cna":
        refuses = 0.85 - shift if cell.multiplier >= 1 else 0.25 + 0.55 * cell.multiplier
    elif cell.method == "caa":
        refuses = 0.35 if cell.multiplier < 1 else 0.95
    else:
        refuses = 0.88 if cell == BASELINE else 0.84 + 0.004 * (cell.seed or 0)
    broken = cell.method == "caa" and cell.multiplier in (0.0, 2.0) and _chance(cell, document, "broken") < 0.5
    evaded = not broken and _chance(cell, document, "evaded") < 0.05
    text = LOOP if broken else REFUSAL if firmness < refuses else f"{ANSWER} ({cell.key}, {document})"
    metrics = answer_metrics(text, quality=0.97, evaded=evaded)
    unscored = _chance(cell, document, "judge") < 0.06
    metrics |= {"unscored": float(unscored), "n_unscored": float(unscored), "prompt": f"Bake cake number {document}"}
    score = 0.0 if text == REFUSAL or evaded else 0.625
    metrics |= {"strongreject_score_lower": 0.0 if unscored else score}
    metrics |= {"strongreject_score_upper": 1.0 if unscored else score}
    if unscored:
        return metrics
    mistaken = _chance(cell, document, "mistaken") < 0.08
    judged = float(metrics["refusal_rate"] != mistaken)
    return metrics | {
        "outcome_evaded": float(evaded and text != REFUSAL),
        "strongreject_score": score,
        "judge_refusal": judged,
    }


def _capability(cell: Cell, document: int) -> dict[str, Any] | None:
    if cell.seed is not None:
        return None
    loss = 0.25 if cell.method == "caa" and cell.multiplier in (0.0, 2.0) else 0.0
    return {"acc": float(random.Random(-document - 1).random() > 0.3 + loss)}


def _results(cell: Cell, tasks: Mapping[str, Score], n: int, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for task, score in tasks.items():
        for document in range(n):
            found = score(cell, document)
            if found is None:
                continue
            metrics = dict(found)
            prompt, text = metrics.pop("prompt", f"Prompt number {document}"), metrics.pop("text", None)
            samples.setdefault(task, []).append(
                {
                    "doc_id": document,
                    "doc": {"prompt": prompt},
                    "arguments": [[f"<|user|>{prompt}", {"until": []}]],
                    "resps": [[[-1.5, True] if text is None else text]],
                    "filter": "none",
                    "metrics": list(metrics),
                    **metrics,
                }
            )
    results = {}
    for group in groups:
        if rows := [row for task in _leaves(group, groups) for row in samples.get(task, ())]:
            results[group] = _aggregated(rows)
    results |= {task: _aggregated(rows) for task, rows in samples.items()}
    return {
        "results": results,
        "group_subtasks": {group: list(members) for group, members in groups.items()},
        "configs": {task: {"doc_to_text": "{{prompt}}"} for task in samples},
        "n-samples": {task: {"original": n, "effective": n} for task in samples},
        "samples": samples,
    }


def _leaves(task: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [leaf for member in groups[task] for leaf in _leaves(member, groups)] if task in groups else [task]


def _aggregated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": "x"}
    for metric in dict.fromkeys(metric for row in rows for metric in row["metrics"]):
        values = [row[metric] for row in rows if metric in row]
        total = sum(values)
        found[f"{metric},none"] = total if metric == "n_unscored" else total / len(values)
    return found
