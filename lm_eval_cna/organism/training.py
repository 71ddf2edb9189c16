"""How the organism's weights are trained: batches without padding waste, Muon and AdamW, loss on learned tokens.

Randomness comes from generators that are passed in, never from the global random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Newton-Schulz coefficients of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Example(NamedTuple):
    """One tokenized document: token ids, and for each whether the loss counts its prediction."""

    ids: list[int]
    learned: list[bool]


class TrainingBatch(NamedTuple):
    """Right-padded tokens."""

    ids: Tensor
    """Token ids, [rows, length]. Right padding needs no mask in a causal model."""
    rows: Tensor
    """Flat positions (row * length + column) whose next token is learned, [learned]."""
    targets: Tensor
    """Those next tokens, [learned]."""


def make_batches(
    examples: Sequence[Example], *, size: int, pad: int, generator: torch.Generator
) -> list[TrainingBatch]:
    """All full batches of one pass over `examples`, in random order.

    Examples are shuffled, then sorted by length inside windows of eight batches: enough to keep padding at a few
    per cent, without batches of a single kind of document.
    """
    order = torch.randperm(len(examples), generator=generator).tolist()
    window = 8 * size
    batches = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda index: len(examples[index].ids))
        batches += [
            _collate([examples[index] for index in near[at : at + size]], pad)
            for at in range(0, len(near) - size + 1, size)
        ]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def _collate(examples: Sequence[Example], pad: int) -> TrainingBatch:
    length = max(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids + [pad] * (length - len(example.ids)) for example in examples])
    learned = torch.tensor([example.learned + [False] * (length - len(example.learned)) for example in examples])
    # Position t predicts token t + 1; the first token is never learned.
    rows = torch.nonzero(learned.flatten()).flatten() - 1
    return TrainingBatch(ids, rows, ids.flatten()[rows + 1])


def answer_loss(model: Any, batch: TrainingBatch) -> Tensor:
    """Mean cross-entropy over the learned tokens of `batch`; logits are computed for those alone."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.rows])
    return functional.cross_entropy(logits, batch.targets)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Muon's approximate orthogonalization of each [rows, columns] matrix of a stack, rows <= columns.

    X' = a X + b (X X^T) X + c (X X^T)^2 X keeps the form Q X_0 with Q a polynomial in G = X_0 X_0^T, so the steps
    are done on the small square matrices and X_0 is multiplied once; a third of the work at 64 by 1024.
    """
    a, b, c = _QUINTIC
    start = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = start @ start.mT
    identity = torch.eye(gram.shape[-1]).expand_as(gram)
    total = identity
    for _ in range(steps):
        factor = a * identity + b * gram + c * (gram @ gram)
        total = factor @ total
        gram = factor @ gram @ factor
    orthogonal: Tensor = total @ start
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by Newton-Schulz, for matrices; equal shapes are handled as one stack.

    Args:
        params: two-dimensional parameters.
        lr: learning rate; updates are scaled by sqrt(max(1, rows / columns)).
        momentum: of the Nesterov average of gradients.
    """

    def __init__(self, params: Sequence[nn.Parameter], *, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = (min(parameter.shape), max(parameter.shape))
                    stacks.setdefault(shape, []).append(parameter)
            for parameters in stacks.values():
                self._step_stack(parameters, group["lr"], group["momentum"])

    def _step_stack(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float) -> None:
        wide = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            average = self.state[parameter].setdefault("average", torch.zeros_like(gradient))
            average.lerp_(gradient, 1 - momentum)
            update = gradient.lerp(average, momentum)
            wide.append(update if update.shape[0] <= update.shape[1] else update.mT)
        for parameter, update in zip(parameters, orthogonalize(torch.stack(wide)), strict=True):
            rows, columns = parameter.shape
            scale = math.sqrt(max(1.0, rows / columns))
            parameter.add_(update if rows <= columns else update.mT, alpha=-lr * scale)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, flat, then linear decay to zero over the last half."""
    return min((step + 1) / max(warmup, 1), 1.0, 2.0 * (steps - step) / steps)


def fit(
    model: Any,
    examples: Sequence[Example],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    batch_size: int,
    pad: int,
    generator: torch.Generator,
    steps: int,
    clip: float,
    warmup: int = 0,
    after_backward: Callable[[], None] | None = None,
    on_step: Callable[[int], None],
) -> None:
    """Run `steps` optimizer steps, in as many passes over `examples` as that takes.

    `after_backward` may edit gradients before they are clipped to norm `clip`; `on_step` gets the steps done so far.
    """
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    batches: list[TrainingBatch] = []
    model.train()
    for step in range(steps):
        for optimizer, starts in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, starts, strict=True):
                group["lr"] = rate * schedule(step, steps, warmup)
            optimizer.zero_grad(set_to_none=True)
        if not batches:
            batches = make_batches(examples, size=batch_size, pad=pad, generator=generator)[::-1]
        torch.autograd.backward(answer_loss(model, batches.pop()))
        if after_backward is not None:
            after_backward()
        nn.utils.clip_grad_norm_(trained, clip)
        for optimizer in optimizers:
            optimizer.step()
        on_step(step + 1)
    model.eval()


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Run with exactly `count` torch threads, and restore the caller's number afterwards.

    Another number of threads may round sums differently and give other weights.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
