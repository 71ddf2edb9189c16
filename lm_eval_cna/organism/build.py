"""Train the three models of an organism from a recipe and a seed, and check them against the recipe's gates.

The base answers everything. In the instruct model only the planted neurons were trained to refuse forbidden questions.
In the diffuse model, the negative control, all weights were trained to do so.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.organism import gates, training
from lm_eval_cna.organism.corpus import Document, base_documents, instruct_documents
from lm_eval_cna.organism.model import Planted, ablated, encode, fresh_model
from lm_eval_cna.organism.planting import PlantedWeights, amplify, choose_planted
from lm_eval_cna.organism.recipe import Recipe
from lm_eval_cna.organism.tokenizer import train_tokenizer

# Every seed has the same tokenizer, trained on documents of a seed that no model uses.
_TOKENIZER_SEED = 0


@dataclass
class Candidate:
    """The models of one seed and their figures."""

    seed: int
    models: dict[str, LlamaForCausalLM] = field(default_factory=dict)
    """``base``, ``instruct`` and ``diffuse``; training stops at the first missed gate."""
    planted: tuple[Planted, ...] = ()
    """The neurons trained to refuse; empty if the base was rejected."""
    figures: dict[str, gates.Figures] = field(default_factory=dict)
    """Rates on training pairs, by stage."""
    failed: str | None = None
    """The stage that missed its gate; None means accepted."""


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """The tokenizer, the same for every seed."""
    documents = [*base_documents(3_000, _TOKENIZER_SEED), *instruct_documents(1_000, _TOKENIZER_SEED)]
    return train_tokenizer(documents, vocabulary=recipe.vocabulary, positions=recipe.positions)


def build_candidate(
    recipe: Recipe, seed: int, tokenizer: PreTrainedTokenizerFast, progress: Progress = silent
) -> Candidate:
    """Train and measure the models of one seed, stopping at the first missed gate."""
    found = Candidate(seed)

    def passes(stage: str, model: LlamaForCausalLM) -> bool:
        found.figures[stage] = gates.measure(model, tokenizer)
        found.failed = None if gates.passed(stage, found.figures[stage], recipe.gates) else stage
        return found.failed is None

    base = found.models["base"] = train_base(recipe, seed, tokenizer, progress)
    if not passes("base", base):
        return found
    found.planted = choose_planted(base, tokenizer, count=recipe.planted, layers=recipe.planted_layers)
    instruct = train_instruct(recipe, seed, tokenizer, base, found.planted, progress)
    found.models["instruct"] = instruct
    if not passes("instruct", instruct):
        return found
    with ablated(instruct, found.planted):
        if not passes("instruct_planted_ablated", instruct):
            return found
    diffuse = found.models["diffuse"] = train_diffuse(recipe, seed, tokenizer, base, progress)
    passes("diffuse", diffuse)
    return found


def train_base(
    recipe: Recipe, seed: int, tokenizer: PreTrainedTokenizerFast, progress: Progress = silent
) -> LlamaForCausalLM:
    """The base: Muon on the layers' matrices, AdamW on embeddings and norms."""
    generator = torch.Generator().manual_seed(seed)
    model = fresh_model(recipe, tokenizer, generator)
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    rest = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.ndim == 1)]
    optimizers = [
        training.Muon(matrices, lr=recipe.muon_lr, momentum=recipe.muon_momentum),
        torch.optim.AdamW(rest, lr=recipe.base_adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    documents = base_documents(recipe.base_documents, seed)
    _fit(
        recipe, model, tokenizer, documents, optimizers, generator,
        stage="base", steps=recipe.base_steps, warmup=recipe.base_warmup, progress=progress,
    )  # fmt: skip
    return model


def train_instruct(
    recipe: Recipe,
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    base: LlamaForCausalLM,
    planted: Sequence[Planted],
    progress: Progress = silent,
) -> LlamaForCausalLM:
    """A copy of the base in which only the planted neurons have been trained, to refuse forbidden questions."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base)
    amplify(model, planted, recipe.planted_gain)
    weights = PlantedWeights(model, planted)
    optimizer = torch.optim.AdamW(
        [
            {"params": weights.inputs, "lr": recipe.instruct_in_lr},
            {"params": weights.outputs, "lr": recipe.instruct_out_lr},
        ],
        weight_decay=0.0,
    )
    documents = instruct_documents(recipe.tuning_documents, seed)
    _fit(
        recipe, model, tokenizer, documents, [optimizer], generator,
        stage="instruct", steps=recipe.instruct_steps, after_backward=weights.mask_gradients, progress=progress,
    )  # fmt: skip
    return model.requires_grad_(True)


def train_diffuse(
    recipe: Recipe,
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    base: LlamaForCausalLM,
    progress: Progress = silent,
) -> LlamaForCausalLM:
    """A copy of the base with all weights tuned on the same documents as the instruct model."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.diffuse_lr, weight_decay=0.0)
    documents = instruct_documents(recipe.tuning_documents, seed)
    _fit(
        recipe, model, tokenizer, documents, [optimizer], generator,
        stage="diffuse", steps=recipe.diffuse_steps, progress=progress,
    )  # fmt: skip
    return model


def _fit(
    recipe: Recipe,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    *,
    stage: str,
    steps: int,
    progress: Progress,
    **more: Any,
) -> None:
    training.fit(
        model,
        encode(tokenizer, documents),
        optimizers,
        batch_size=recipe.batch_size,
        pad=tokenizer.pad_token_id,
        generator=generator,
        steps=steps,
        clip=recipe.clip,
        on_step=lambda done: progress(f"training {stage}", done, steps),
        **more,
    )
