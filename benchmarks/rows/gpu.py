"""The rows of a GPU: a random Llama of about 1 B parameters in bfloat16. Skipped where there is none."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from benchmarks import plain_loop
from benchmarks.rows.steering import assigned, generating
from benchmarks.sides import Outcome, Side, compare, row
from benchmarks.workbench import Workbench, random_llama, some_circuit
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.steering.apply import steer

_MODEL = "1.1 B Llama, bfloat16, GPU"
_NONE = Outcome(skipped="no GPU here")
_BATCH_SIZE = 32


@row("gpu-discovery", f"CNA circuit, 100 + 100 prompts, {_MODEL}", "plain loop", rounds=3, at_least=10)
def discovery(bench: Workbench) -> Outcome:
    """As on the CPU."""
    if not torch.cuda.is_available():
        return _NONE
    model, tokenizer = _model(bench)
    contrast = load_contrast("organism")
    k = 100
    settings = Settings(batch_size=128)

    def ours() -> object:
        found = measure(
            model,
            tokenizer,
            contrast,
            read=("neurons",),
            universal_filter=False,
            check_leakage=False,
            settings=settings,
        )
        return cna.find(found, top_k=k)

    def theirs() -> object:
        return plain_loop.discover(_OnDevice(model), tokenizer, contrast.positive, contrast.negative, k)

    return compare(Side("measure() and cna.find()", ours), Side("plain loop", theirs), bench.rounds, batch_size=128)


class _OnDevice:
    """A model that takes its inputs from the host, as the plain loop gives them."""

    def __init__(self, model: Any) -> None:
        self.model, self.config, self._whole = model.model, model.config, model

    def __call__(self, ids: torch.Tensor) -> Any:
        return self._whole(ids.to(self._whole.device))


@row("gpu-steering-fold", f"tokens per second at m = 0, {_MODEL}: fold", "the same unsteered", rounds=15, at_least=0.99)
def fold(bench: Workbench) -> Outcome:
    """As on the CPU."""
    return _steering(bench, "fold")


@row("gpu-steering-hook", f"tokens per second at m = 0, {_MODEL}: hook", "the same unsteered", rounds=15, at_least=0.98)
def hook(bench: Workbench) -> Outcome:
    """As on the CPU."""
    return _steering(bench, "hook")


@row("gpu-steering-rows", f"tokens per second at m = 0, {_MODEL}: rows", "the same unsteered", rounds=15, at_least=0.97)
def rows(bench: Workbench) -> Outcome:
    """As on the CPU."""
    return _steering(bench, "rows")


def _steering(bench: Workbench, mode: Any) -> Outcome:
    if not torch.cuda.is_available():
        return _NONE
    model, tokenizer = _model(bench)
    if mode == "rows":
        return generating(bench, mode, model, tokenizer, lambda m, s: assigned(m, s, _BATCH_SIZE), _BATCH_SIZE)
    return generating(bench, mode, model, tokenizer, lambda m, s: steer(m, s, mode=mode), _BATCH_SIZE)


@row(
    "gpu-sweep-in-turn", f"sweep of 9 cells x 100 prompts x 48 tokens, {_MODEL}", "cells in turn", rounds=3, at_least=4
)
def in_turn(bench: Workbench) -> Outcome:
    """Packed by the sweep's own default against `mode: fold`, the same batch size asked for."""
    if not torch.cuda.is_available():
        return _NONE
    folder, circuit = _checkpoint(bench)
    common: dict[str, Any] = {"model": folder, "circuit": circuit, "device": "cuda", "dtype": "bfloat16"}
    common["batch_size"] = _BATCH_SIZE
    return compare(
        Side("default mode", lambda: bench.sweep(**common)),
        Side("mode fold", lambda: bench.sweep(**common, mode="fold")),
        bench.rounds,
        note="Both from loading the model to the summary",
    )


@cache
def _model(bench: Workbench) -> tuple[Any, Any]:
    """16 layers of width 2048, neurons 8192 wide; the organism's tokenizer, a vocabulary of 32,000."""
    tokenizer = tf.AutoTokenizer.from_pretrained(bench.organism.instruct)
    with torch.device("cuda"):
        model = random_llama(
            seed=bench.seed, layers=16, hidden=2048, width=8192, heads=16, vocabulary=32_000, dtype=torch.bfloat16
        )
    return model, tokenizer


@cache
def _checkpoint(bench: Workbench) -> tuple[Path, Path]:
    model, tokenizer = _model(bench)
    folder = bench.folder("llama-1b")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    some_circuit(model, tokenizer).write(folder / "circuit.json")
    return folder, folder / "circuit.json"
