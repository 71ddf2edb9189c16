"""harmless_kl: how far steering moves the first generated token on prompts that do not concern the behaviour.

KL(unsteered || steered) = sum_t p(t) * (log p(t) - log q(t)) in nats: p is the untouched model's distribution of the
token after the prompt and q the steered one's, before any processor of `generate` (temperature, repetition penalty).
lm-eval has no output type for distributions, so this is no task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import CNAError, ConfigError
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.resources import harmless_prompts
from lm_eval_cna.steering.apply import refuse_nesting, steer
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.forward import evaluating, inputs_of
from lm_eval_cna.transformer.out_of_memory import least_of, with_less_memory
from lm_eval_cna.transformer.prompts import Rendering, pad_left, pad_token_id

PERCENTILE = 0.95
#: Token ids and attention mask [batch, tokens].
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Divergence:
    """KL(unsteered || steered) of the first generated token, in nats."""

    values: tuple[float | None, ...]
    """One per prompt, in the prompts' order; None where the KL is not finite (the steered model gives NaN, or
    probability 0 to a token that the untouched one may say)."""
    mean: float | None
    """Their mean; None if any value is None: leaving out the worst prompts would make a broken model look sound."""
    p95: float | None
    """95th percentile, interpolated linearly between the two nearest values; None if any value is None."""


def harmless_kl(
    model: nn.Module,
    tokenizer: Any,
    settings: Sequence[Setting],
    prompts: Sequence[str] | None = None,
    *,
    mode: Mode = "auto",
    rendering: Rendering | None = None,
    batch_size: int = 16,
    progress: Progress = silent,
) -> tuple[Divergence, ...]:
    """Measure the first-token KL of every setting against the untouched model.

    The untouched model runs once for all settings; its log-probabilities are kept on the host, 8 bytes for each prompt
    and token of the vocabulary. A baseline setting (m = 1) has KL 0 without a run. Dropout is off.

    Args:
        model: a transformers model, not steered.
        tokenizer: its tokenizer.
        settings: what to measure.
        prompts: by default the packaged harmless prompts.
        mode: how to steer, as in `steer`; the same as in the evaluation.
        rendering: how the evaluation renders prompts; by default in the tokenizer's chat template.
        batch_size: prompts per forward pass, padded on the left; half as many where memory runs out.
        progress: called before each steered setting, with the number done.

    Returns:
        One `Divergence` per setting, in order.

    Raises:
        ConfigError: there is no prompt, or the batch size is not positive.
        ContrastError: a prompt cannot be rendered.
        CNAError: the untouched model's logits are not finite.
        SteeringError, InterventionError, ArchitectureError: the model is steered already, or a setting does not fit.
    """
    prompts = harmless_prompts() if prompts is None else prompts
    if not prompts:
        raise ConfigError("there is no prompt to measure a divergence on")
    if batch_size < 1:
        raise ConfigError("batch size", got=batch_size, allowed="1 or more")
    architecture = find_architecture(model)
    refuse_nesting(architecture)
    rows = (rendering or Rendering()).encode(prompts, tokenizer)
    # Sorted by length, so that a batch holds little padding.
    order = torch.tensor([len(row) for row in rows]).argsort(descending=True, stable=True)
    pad = pad_token_id(tokenizer)
    steered = [number for number, setting in enumerate(settings) if not setting.is_baseline]

    def measure(batch_size: int) -> tuple[Divergence, ...]:
        batches = [pad_left([rows[i] for i in part.tolist()], pad) for part in torch.split(order, batch_size)]
        divergences = [_summarise(torch.zeros(len(rows), dtype=torch.float64))] * len(settings)
        reference = list(_log_probs(model, architecture, batches)) if steered else []
        if any(bool(log_p.isnan().any()) for log_p in reference):
            raise CNAError(
                "the untouched model's logits are not finite",
                do="load it in bfloat16 or float32, and check its weights",
            )
        for done, number in enumerate(steered):
            progress("harmless KL", done, len(steered))
            with steer(model, settings[number], mode=mode, architecture=architecture):
                pairs = zip(reference, _log_probs(model, architecture, batches), strict=True)
                found = torch.cat([kl_divergence(log_p, log_q) for log_p, log_q in pairs])
            divergences[number] = _summarise(found[order.argsort()])
        return tuple(divergences)

    with evaluating(model):
        return with_less_memory(measure, batch_size, least=least_of(architecture, batch_size))


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) over the last dimension, in nats.

    A token of probability 0 under p adds nothing. A KL that rounding makes negative is 0. It is infinite where q gives
    probability 0 to a token that p does not, and NaN where q is NaN.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> round(float(kl_divergence(p.log(), q.log())), 4)
        0.1438
    """
    terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
    # A NaN in q counts even where p is 0.
    terms = torch.where(log_q.isnan(), torch.nan, terms)
    return terms.sum(-1).clamp(min=0.0)


def _summarise(values: torch.Tensor) -> Divergence:
    listed = tuple(value if math.isfinite(value) else None for value in values.tolist())
    if None in listed:
        return Divergence(listed, None, None)
    return Divergence(listed, float(values.mean()), float(values.quantile(PERCENTILE)))


def _log_probs(model: nn.Module, architecture: Architecture, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
    """Log-probabilities of the token after each prompt: [batch, vocabulary] per batch, float64 on the host."""
    for logits in last_logits(model, architecture, batches):
        yield torch.log_softmax(logits, dim=-1)


def last_logits(model: nn.Module, architecture: Architecture, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
    """Yield each batch's logits of the token after each prompt: [batch, vocabulary], float64 on the host."""
    for batch in batches:
        inputs: dict[str, Any] = dict(inputs_of(architecture.stack, *batch))
        with torch.inference_mode():
            # A batch's logits of all positions can take more memory than the model.
            found = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].cpu().double()
        yield found
