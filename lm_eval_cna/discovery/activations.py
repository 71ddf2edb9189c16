"""Means of what prompts' last tokens show, in batches and with memory that does not grow with the number of prompts.

Hooks add what they see to running sums on the device. Only the decoder stack runs, without logits, cache and gradients
and no further than the last value that is read; the last layer's MLP sees the last position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, get_args

import torch
from torch import nn

from lm_eval_cna.discovery.means import FINITE_ADVICE, Means, RunningSums
from lm_eval_cna.discovery.moe_activations import ExpertsReader
from lm_eval_cna.errors import CNAError, ConfigError, ContrastError
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.interventions.methods import Read
from lm_eval_cna.transformer.decoder import Architecture, Layer
from lm_eval_cna.transformer.forward import evaluating, hidden_states, inputs_of
from lm_eval_cna.transformer.out_of_memory import least_of, with_less_memory
from lm_eval_cna.transformer.prompts import pad_left

_Observer = Callable[[int, torch.Tensor], None]
Rows = Sequence[Sequence[int]]


def mean_activations(
    architecture: Architecture,
    rows: Rows,
    groups: Sequence[int],
    *,
    read: Sequence[Read] = ("neurons",),
    batch_size: int = 32,
    pad: int = 0,
    progress: Progress = silent,
) -> Means:
    """Average what the prompts' last tokens show, group by group; see `Means` for what can be read.

    `groups` gives the group of each prompt, from 0 to n - 1, none empty (0 positive and 1 negative, or finer for
    cross-validation). Prompts are sorted by length and padded on the left with a masked token. The batch size is halved
    if memory runs out.

    Raises:
        ConfigError: an argument is out of range.
        CNAError: activations are not finite; the message names the first such layer.
    """
    unknown = set(read) - set(get_args(Read))
    if unknown or not read:
        raise ConfigError("what to read", got=sorted(unknown), allowed=", ".join(get_args(Read)))
    assert len(rows) == len(groups)
    number = max(groups) + 1
    counts = tuple(groups.count(group) for group in range(number))
    assert all(counts), "every group needs a prompt"

    def add_up(batch_size: int) -> dict[Read, RunningSums]:
        sums = {what: RunningSums(1 if what == "magnitudes" else number, len(architecture.layers)) for what in read}
        members = torch.empty(0)

        def observe(what: Read) -> _Observer:
            if what == "magnitudes":
                return lambda layer, last: sums[what].add(layer, torch.ones(1, len(last)), last.abs())
            return lambda layer, last: sums[what].add(layer, members, last)

        with _watch(architecture, {what: observe(what) for what in read}):
            for batch in _batches(rows, batch_size, "activations", progress):
                members = nn.functional.one_hot(torch.tensor([groups[i] for i in batch]), number).T
                _forward(architecture, [rows[i] for i in batch], pad)
        return sums

    sums = with_less_memory(add_up, batch_size, least=least_of(architecture, batch_size))
    names = {
        "neurons": "activations",
        "magnitudes": "activations",
        "writes": "MLP outputs",
        "blocks": "residual values",
    }
    means = {what: sums[what].means([len(rows)] if what == "magnitudes" else counts, names[what]) for what in read}
    magnitudes = means.pop("magnitudes", None)
    for what in ("writes", "blocks"):
        if what in means:
            means[what] = means[what].view(len(counts), len(architecture.layers), -1)
    return Means(counts, magnitudes=None if magnitudes is None else magnitudes[0], **means)


def count_in_top(
    architecture: Architecture,
    rows: Rows,
    k: int,
    *,
    batch_size: int = 32,
    pad: int = 0,
    progress: Progress = silent,
) -> torch.Tensor:
    """Count for every neuron the prompts on which it is among the model's k largest by |activation| at the last token.

    The k largest are carried from layer to layer, so a prompt's activations of the whole model are never in memory.
    Equal values are ranked by their order in `Architecture.layout`, and so are the counts (int32, on the host). Other
    arguments are those of `mean_activations`.

    Raises:
        CNAError: activations are not finite; the message names the first such layer.
    """
    layout = architecture.layout

    def count(batch_size: int) -> torch.Tensor:
        counts = torch.zeros(layout.num_neurons, dtype=torch.int32)
        finite: dict[int, torch.Tensor] = {}
        top_values = top_ids = torch.empty(0)

        def merge(layer: int, last: torch.Tensor) -> None:
            nonlocal top_values, top_ids
            finite[layer] = torch.isfinite(last).all() & finite.get(layer, True)
            place = layout.of_layer(layer)
            ids = torch.arange(place.start, place.stop, device=last.device).expand(len(last), -1)
            # Earlier layers stand first, so a stable sort breaks ties by (layer, index).
            values = torch.cat((top_values.to(last.device), last.abs().float()), dim=1)
            ids = torch.cat((top_ids.to(last.device), ids), dim=1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            top_values, top_ids = values[:, :k], ids.gather(1, order[:, :k])

        with _watch(architecture, {"neurons": merge}):
            for batch in _batches(rows, batch_size, "universal filter", progress):
                top_values = torch.empty((len(batch), 0))
                top_ids = torch.empty((len(batch), 0), dtype=torch.int64)
                _forward(architecture, [rows[i] for i in batch], pad)
                chosen = top_ids.flatten()
                counts = counts.to(chosen.device).scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        for layer, flag in finite.items():
            if not bool(flag):
                raise CNAError(f"activations of layer {layer} are not finite (NaN or infinity)", do=FINITE_ADVICE)
        return counts.cpu()

    return with_less_memory(count, batch_size, least=least_of(architecture, batch_size))


def _batches(rows: Rows, batch_size: int, stage: str, progress: Progress) -> Iterator[list[int]]:
    """Positions of each batch's prompts, longest first, so that memory runs out in the first batch or never.

    A batch ends early if the next prompt is less than half as long as its first: padding never doubles a batch.
    """
    if batch_size < 1:
        raise ConfigError("batch size", got=batch_size, allowed="1 or more")
    if not rows:
        raise ContrastError("there is no prompt to run")
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        shortest = len(rows[order[start]]) / 2
        batch = [i for i in order[start : start + batch_size] if len(rows[i]) >= shortest]
        yield batch
        start += len(batch)
        progress(stage, start, len(order))


class _AllRead(Exception):
    """Ends a forward pass when everything has been read."""


@torch.inference_mode()
def _forward(architecture: Architecture, rows: Rows, pad: int) -> None:
    """Run the decoder stack for its hooks."""
    with suppress(_AllRead):
        architecture.stack(**inputs_of(architecture.stack, *pad_left(rows, pad)), use_cache=False)


@contextmanager
def _watch(architecture: Architecture, observers: dict[Read, _Observer]) -> Iterator[None]:
    """Call observers with (layer, values at the last token [batch, size]) in every forward pass inside the context.

    Observers must not keep the values: Falcon adds attention into the MLP's output in place afterwards.
    """
    handles = []
    try:
        of_neurons = [observer for what, observer in observers.items() if what in ("neurons", "magnitudes")]
        for layer in architecture.layers:
            if of_neurons and layer.has_experts:
                handles += ExpertsReader(layer, of_neurons).register()
            elif of_neurons:
                handles.append(_before(layer, of_neurons))
            handles += [_after(layer, what, observers[what]) for what in ("writes", "blocks") if what in observers]
        handles += _end_early(architecture.layers[-1], observers)
        with evaluating(architecture.stack):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _before(layer: Layer, observers: Sequence[_Observer]) -> torch.utils.hooks.RemovableHandle:
    """Observe the input of a dense layer's down-projection."""
    (projection,) = layer.projections

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        last = projection.gathered(inputs[0][:, -1])
        for observer in observers:
            observer(layer.index, last)

    return projection.down.register_forward_pre_hook(before)


def _after(layer: Layer, what: Read, observer: _Observer) -> torch.utils.hooks.RemovableHandle:
    """Observe the MLP's output, or the residual stream after the layer."""

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        observer(layer.index, hidden_states(output)[:, -1])

    return (layer.write if what == "writes" else layer.block).register_forward_hook(after)


def _end_early(last: Layer, read: Collection[Read]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that skip what is not read in the last layer: the MLP of all other positions, and everything after it.

    They must be registered after the observers' hooks, since a module's hooks run in order.
    """

    def end(*_: Any) -> None:
        raise _AllRead

    def cut(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x[:, -1:].contiguous() if isinstance(x, torch.Tensor) else x for x in inputs)

    if "blocks" in read:
        return [last.block.register_forward_hook(end)]
    if "writes" in read:
        return [last.mlp.register_forward_pre_hook(cut), last.write.register_forward_hook(end)]
    if last.has_experts:  # they are read when the MLP is done
        return [last.mlp.register_forward_pre_hook(cut), last.mlp.register_forward_hook(end)]
    return [last.mlp.register_forward_pre_hook(cut), last.projections[0].down.register_forward_pre_hook(end)]
