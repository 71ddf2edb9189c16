"""One pass over the prompts of a contrast set. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval_cna import discovery
from lm_eval_cna.activations import Progress, count_in_top, mean_activations
from lm_eval_cna.contrast.contrast_set import ContrastSet, prompts_sha256
from lm_eval_cna.contrast.jailbreakbench import leakage_statement
from lm_eval_cna.contrast.loading import load_universal_prompts
from lm_eval_cna.contrast.splits import Split
from lm_eval_cna.errors import ContrastError
from lm_eval_cna.interventions.compatibility import identity_of
from lm_eval_cna.interventions.header import DiscoveryInfo, UniversalFilter, stamp
from lm_eval_cna.interventions.methods import Read
from lm_eval_cna.measurement import DEFAULT_FRACTION, Measurement
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.prompts import Rendering, chat_template_sha256, pad_token_id


@dataclass(frozen=True)
class Settings:
    """How prompts are rendered and run; the same for the contrast set and the universal filter's prompts.

    Attributes:
        rendering: from text to token ids, as the evaluation does it.
        batch_size: prompts per forward pass.
        progress: called with (prompts done, prompts in all) after each batch, for each set of prompts anew.
    """

    rendering: Rendering = field(default_factory=Rendering)
    batch_size: int = 32
    progress: Progress | None = None


def measure(
    model: Any,
    tokenizer: Any,
    contrast: ContrastSet,
    *,
    read: Sequence[Read] = ("neurons", "writes"),
    universal_filter: bool = True,
    universal_fraction: float = DEFAULT_FRACTION,
    check_leakage: bool = True,
    split: Split | None = None,
    settings: Settings | None = None,
    model_id: str | None = None,
    revision: str | None = None,
) -> Measurement:
    """Run a contrast set through a model and keep the class means of what is read.

    Args:
        model: a transformers model of a known architecture.
        tokenizer: its tokenizer.
        contrast: the prompts.
        read: "neurons" for circuits, "writes" for CAA vectors, "blocks" for residual vectors, "magnitudes" for
            `top-activation` and activation-matched controls.
        universal_filter: find universal neurons on the packaged diverse prompts first, where neurons are to be chosen
            ("neurons" or "magnitudes" is read).
        universal_fraction: share of the model's neurons that are a diverse prompt's top.
        check_leakage: compare the contrast set with JBB on the hub where it does not say itself what leaks.
        split: keep the means of these groups of prompts too: four numbers a neuron and fold, from the same passes.
        settings: how prompts are rendered and run.
        model_id: written into the files; by default what the model says of itself.
        revision: likewise.

    Raises:
        ArchitectureError: the model is not one we know.
        ContrastError: a prompt cannot be rendered or is longer than the model can read.
        CNAError: activations are not finite.
    """
    settings = settings or Settings()
    architecture = find_architecture(model)
    rows = _encoded(contrast.prompts, architecture, tokenizer, settings)
    universal = None
    if universal_filter and {"neurons", "magnitudes"} & set(read):
        universal = _universal_filter(architecture, tokenizer, universal_fraction, settings)
    means = mean_activations(
        architecture,
        rows,
        [0] * len(contrast.positive) + [1] * len(contrast.negative) if split is None else split.numbers,
        read=read,
        batch_size=settings.batch_size,
        pad=pad_token_id(tokenizer),
        progress=settings.progress,
    )
    by_group = None
    if split is not None:
        by_group, means = means, means.merged([group.label for group in split.groups])
    info = DiscoveryInfo(
        contrast=contrast.name,
        contrast_sha256=contrast.sha256,
        positive=len(contrast.positive),
        negative=len(contrast.negative),
        universal_filter=universal,
        chat_template_sha256=chat_template_sha256(tokenizer) if settings.rendering.chat_template else None,
        leakage=leakage_statement(contrast.prompts, contrast.leakage)
        if check_leakage
        else "not checked: not asked for",
        **stamp(),
    )
    identity = identity_of(model, model_id, revision)
    return Measurement(architecture, contrast, means, info, *identity, split, by_group)


def _encoded(prompts: Sequence[str], architecture: Architecture, tokenizer: Any, settings: Settings) -> list[list[int]]:
    rows = settings.rendering.encode(prompts, tokenizer)
    limit = getattr(getattr(architecture.stack, "config", None), "max_position_embeddings", None)
    longest = max(map(len, rows))
    if isinstance(limit, int) and longest > limit:
        raise ContrastError(
            "a prompt is longer than the model can read", got=f"{longest} tokens", allowed=f"up to {limit}"
        )
    return rows


def _universal_filter(
    architecture: Architecture, tokenizer: Any, fraction: float, settings: Settings
) -> UniversalFilter:
    prompts = load_universal_prompts()
    counts = count_in_top(
        architecture,
        _encoded(prompts, architecture, tokenizer, settings),
        discovery.circuit_size(fraction, architecture.num_neurons),
        batch_size=settings.batch_size,
        pad=pad_token_id(tokenizer),
        progress=settings.progress,
    )
    return UniversalFilter(
        fraction=fraction,
        share=discovery.UNIVERSAL_SHARE,
        prompts=len(prompts),
        prompts_sha256=prompts_sha256(prompts),
        neurons=discovery.universal_neurons(counts, architecture.layout, len(prompts)),
    )
