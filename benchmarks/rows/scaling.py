"""How a sweep's cost grows, and where its time goes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import transformers as tf

from benchmarks.phases import Phases
from benchmarks.sides import Outcome, Side, compare, row
from benchmarks.workbench import PROMPTS, Workbench, random_llama, some_circuit


@row("sweep-18-cells", "sweep of 18 cells, organism", "one of 9 cells, as the divisor", rounds=3, at_most=2.0)
def eighteen_cells(bench: Workbench) -> Outcome:
    """18 cells against 9, and the cost at a few more points."""
    outcome = compare(
        Side("9 cells", bench.sweep),
        Side("18 cells", lambda: bench.sweep(cells=18)),
        bench.rounds,
        note=f"{PROMPTS} prompts; further points below, seconds of one sweep from loading to summary",
    )
    few = min(bench.rounds, 2)
    by_cells = {f"{cells} cells": _seconds(bench, few, cells=cells) for cells in (5, 9, 18)}
    by_prompts = {f"{prompts} prompts": _seconds(bench, few, prompts=prompts) for prompts in (20, 40, 80)}
    by_size = {}
    for layers, hidden in ((4, 128), (4, 256), (8, 256)):
        model, circuit = checkpoint(bench, layers=layers, hidden=hidden)
        parameters = sum(path.stat().st_size for path in model.glob("*.safetensors")) / 4e6
        by_size[f"{layers} layers of {hidden} ({parameters:.1f} M)"] = _seconds(
            bench, 1, model=model, circuit=circuit, cells=5, prompts=20
        )
    outcome.details.update(cells=by_cells, prompts=by_prompts, model_size_5_cells_20_prompts=by_size)
    return outcome


def _seconds(bench: Workbench, rounds: int, **size: object) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        bench.sweep(**size)  # type: ignore[arg-type]
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def checkpoint(bench: Workbench, *, layers: int, hidden: int, width: int | None = None) -> tuple[Path, Path]:
    """A random Llama with the organism's tokenizer, and a circuit of it: (checkpoint, circuit file)."""
    folder = bench.folder("llama")
    tokenizer = tf.AutoTokenizer.from_pretrained(bench.organism.instruct)
    model = random_llama(
        seed=bench.seed,
        layers=layers,
        hidden=hidden,
        width=width or 4 * hidden,
        heads=hidden // 64,
        vocabulary=len(tokenizer),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    circuit = folder / "circuit.json"
    some_circuit(model, tokenizer).write(circuit)
    return folder, circuit


@row("sweep-phases", "share of a sweep's time inside the model's layers", rounds=3, unit="%")
def phases(bench: Workbench) -> Outcome:
    """The same sweep with discovery in it, looked at from a second thread every few milliseconds."""
    bench.sweep()
    shares, seconds = [], []
    for _ in range(bench.rounds):
        with Phases() as seen:
            bench.sweep(discover=True)
        shares.append(seen.shares())
        seconds.append(seen.total)
    inside = [100 * (found.get("generation: model", 0.0)) for found in shares]
    names = sorted({name for found in shares for name in found})
    table = {name: f"{100 * statistics.median(found.get(name, 0.0) for found in shares):.1f} %" for name in names}
    return Outcome(
        values=tuple(inside),
        note=f"9 cells x {PROMPTS} prompts with discovery, {statistics.median(seconds):.2f} s. Where the main thread "
        "is, sampled every 2 ms, median over rounds",
        details=dict(sorted(table.items(), key=lambda item: -float(item[1].split()[0]))),
    )
