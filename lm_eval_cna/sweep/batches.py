"""The batch plan: which (cell, request) pairs are computed together. Importable without torch.

The plan depends only on the requests, their lengths and the manifest's batch size. So a continued sweep makes the same
batches, and a response never depends on when an earlier process was killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

GENERATED = "generate_until"
_SCORED_TOGETHER = 512


@dataclass(frozen=True)
class Request:
    """One question to the model, whichever cell asks it."""

    kind: str
    """lm-eval's request type."""
    arguments: tuple[Any, ...] = field(compare=False, repr=False)
    """Rendered prompt and generation settings, or context and continuation, or one text."""
    key: str
    """See `lm_eval_cna.results.responses.request_key`."""
    task: str
    """The first task that asks it."""
    document: int
    """Its document there; requests of one document belong together."""


class Batch(NamedTuple):
    """Requests that are computed together and written in one transaction."""

    kind: str
    """lm-eval's request type of all of them."""
    rows: tuple[tuple[int, Request], ...]
    """(position of the cell, request)."""

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells in the batch, in order."""
        return tuple(dict.fromkeys(cell for cell, _ in self.rows))

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests in the batch, in order."""
        return tuple(dict.fromkeys(request for _, request in self.rows))


def plan_batches(
    asked: Sequence[Sequence[Request]], lengths: Mapping[str, int], *, rows: int, packed: bool
) -> list[Batch]:
    """Put all requests of all cells into batches.

    Generated answers: rows of all cells together, longest prompt first. A batch then holds little padding, a lack of
    memory shows at once, and the time left is overestimated at first. Log-likelihoods: consecutive documents of one
    task, which share their few-shot block, with all cells that ask them.

    Args:
        asked: for each cell, its requests in lm-eval's order.
        lengths: tokens of the prompt of generated answers, by request key.
        rows: generated answers in a batch.
        packed: whether rows of several cells share a batch.
    """
    cells: dict[Request, list[int]] = {}
    for cell, mine in enumerate(asked):
        for request in mine:
            cells.setdefault(request, []).append(cell)
    generated = [request for request in cells if request.kind == GENERATED]
    generated.sort(key=lambda r: (json.dumps(r.arguments[1], sort_keys=True, default=str), -lengths[r.key], r.key))
    pairs = [(cell, request) for request in generated for cell in cells[request]]
    if not packed:
        pairs.sort(key=lambda pair: pair[0])
    plan = []
    for _, together in groupby(pairs, key=lambda pair: -1 if packed else pair[0]):
        plan += [Batch(GENERATED, part) for part in _batched(together, rows)]
    scored = (request for request in cells if request.kind != GENERATED)
    for _, stretch in groupby(scored, key=lambda request: (request.kind, request.task, cells[request])):
        for part in _by_document(stretch):
            plan.append(Batch(part[0].kind, tuple((cell, r) for cell in cells[part[0]] for r in part)))
    return plan


def _batched(pairs: Iterable[tuple[int, Request]], rows: int) -> Iterable[tuple[tuple[int, Request], ...]]:
    left = iter(pairs)
    return iter(lambda: tuple(islice(left, rows)), ())


def _by_document(requests: Iterable[Request]) -> list[list[Request]]:
    """Cut a task's requests into parts of whole documents."""
    parts: list[list[Request]] = []
    for _, document in groupby(requests, key=lambda request: request.document):
        together = list(document)
        if not parts or len(parts[-1]) + len(together) > _SCORED_TOGETHER:
            parts.append([])
        parts[-1] += together
    return parts


ROWS = "rows"


#: Requests of a cell that a model without shared batches gets, and that are stored, together.
HANDED_OVER = 512
