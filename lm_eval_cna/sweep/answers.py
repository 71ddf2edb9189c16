"""Computes the batches of a sweep on one loaded model.

Greedy answers are generated in batches with rows of many cells. Log-likelihoods are scored cell after cell, and what
the cells share is read once. Everything else (sampling, an unknown cache, vLLM) goes through the model's own lm-eval
methods, cell by cell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from lm_eval.api.instance import Instance

from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.models.hf import CNAHFLM, shares_batches
from lm_eval_cna.models.shared_batches.capacity import why_not_shared
from lm_eval_cna.models.shared_batches.generation import Completion, GenerationJob, SharedGenerator
from lm_eval_cna.models.shared_batches.likelihood import score_settings
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.responses import Response
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep.batches import GENERATED, ROWS, Batch
from lm_eval_cna.sweep.requests import Prompts
from lm_eval_cna.transformer.out_of_memory import with_less_memory

_SCORED = "loglikelihood"


def compute(
    lm: Steered, settings: Sequence[Setting], plan: Sequence[Batch], prompts: Prompts, *, mode: str
) -> Iterator[tuple[Batch, list[Response]]]:
    """Compute batches: first those with rows of several cells, then the others.

    Args:
        lm: the model; unsteered at the end.
        settings: one for each cell; batches name cells by their position here.
        plan: the batches to compute.
        prompts: the encoded prompts of their requests.
        mode: "rows", "fold" or "hook", or "auto": see `lm_eval_cna.sweep.plan.SweepPlan`.

    Yields:
        Each batch with its responses, in the order of its rows.
    """
    if not shares_batches(lm):
        yield from ((batch, _cell_by_cell(lm, settings, batch)) for batch in plan)
        lm.unsteer()
        return
    # Rows are hooks with several settings; what runs one cell at a time in such a sweep is a hook too.
    lm.mode = "hook" if mode == ROWS else cast(Mode, mode)
    packed = [batch for batch in plan if _packs(lm, batch)]
    if packed:
        with SharedGenerator(lm, settings, mode=mode) as generator:  # type: ignore[arg-type]  # config checks it
            for batch in packed:
                found = _generate(generator, [prompts.job(request, cell) for cell, request in batch.rows], lm.lockstep)
                yield batch, [Response(one.text, one.tokens, one.near_ties) for one in found]
    taken = set(map(id, packed))
    for batch in plan:
        if batch.kind == _SCORED:
            yield batch, _score(lm, settings, batch, mode)
        elif id(batch) not in taken:
            answered = _cell_by_cell(lm, settings, batch)
            lm.unsteer()
            yield batch, answered
    lm.unsteer()


def _packs(lm: CNAHFLM, batch: Batch) -> bool:
    return batch.kind == GENERATED and not lm.truncation and why_not_shared(lm, batch.rows[0][1].arguments[1]) is None


def _generate(generator: SharedGenerator, jobs: list[GenerationJob], lockstep: bool) -> list[Completion]:
    """Generate a batch; where memory runs out, in parts, unless other processes would have to as well."""

    def generate(rows: int) -> list[Completion]:
        parts = (jobs[start : start + rows] for start in range(0, len(jobs), rows))
        return [completion for part in parts for completion in generator.generate(part)]

    return with_less_memory(generate, len(jobs), least=len(jobs) if lockstep else 1)


def _score(lm: CNAHFLM, settings: Sequence[Setting], batch: Batch, mode: str) -> list[Response]:
    asked = [(request.arguments[0], request.arguments[1]) for request in batch.requests]
    chosen = [settings[cell] for cell in batch.cells]
    scores = _in_batches_that_fit(lm, lambda: score_settings(lm, asked, chosen, mode=mode))
    found = {
        (cell, request.key): Response(score)
        for cell, of_cell in zip(batch.cells, scores, strict=True)
        for request, score in zip(batch.requests, of_cell, strict=True)
    }
    return [found[cell, request.key] for cell, request in batch.rows]


def _cell_by_cell(lm: Steered, settings: Sequence[Setting], batch: Batch) -> list[Response]:
    found: dict[tuple[int, str], Response] = {}
    for cell in batch.cells:
        requests = [request for position, request in batch.rows if position == cell]
        if lm.setting is not settings[cell]:
            lm.steer(settings[cell])
        # Seeded by batch and cell, so that sampled answers too are the same in a continued sweep.
        lm.seed_sampling(int(json_sha256([cell, [request.key for request in requests]])[:15], 16))
        instances = [Instance(batch.kind, {}, request.arguments, 0) for request in requests]
        answers: list[Any] = _in_batches_that_fit(lm, functools.partial(getattr(lm, batch.kind), instances))
        found.update({(cell, r.key): Response(answer) for r, answer in zip(requests, answers, strict=True)})
    return [found[cell, request.key] for cell, request in batch.rows]


def _in_batches_that_fit(lm: Steered, ask: Callable[[], list[Any]]) -> list[Any]:
    """Ask with the model's own batch size; where memory runs out, with a smaller one from then on."""
    if not shares_batches(lm) or not isinstance(lm.batch_size, int) or lm.lockstep:
        return ask()

    def ask_with(batch_size: int) -> list[Any]:
        lm.batch_size_per_gpu = batch_size
        return ask()

    return with_less_memory(ask_with, lm.batch_size)
