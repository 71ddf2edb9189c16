"""The organism's Llama: create it, tokenize documents, answer prompts, ablate neurons, save checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_cna.organism.corpus import Document
from lm_eval_cna.organism.recipe import Recipe
from lm_eval_cna.organism.training import Example
from lm_eval_cna.transformer.prompts import render_prompts

#: (layer, index) of a planted neuron.
Planted = tuple[int, int]


def fresh_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> LlamaForCausalLM:
    """A Llama with matrices drawn from `generator` alone (normal, ``recipe.init_std``); norms are ones."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        initializer_range=recipe.init_std,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    # The constructor uses the global random state, which the fork restores.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, recipe.init_std, generator=generator)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Example]:
    """Token ids of each document, segment by segment; no token spans two segments."""
    texts = list(dict.fromkeys(segment.text for document in documents for segment in document))
    # The backend's encode_batch would keep the padding that an earlier call has set.
    ids = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    return [
        Example(
            [token for segment in document for token in ids[segment.text]],
            [segment.learned for segment in document for _ in ids[segment.text]],
        )
        for document in documents
    ]


def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, max_new_tokens: int = 48
) -> list[str]:
    """Greedy answers to `prompts` under the chat template, all in one left-padded batch."""
    batch = tokenizer(render_prompts(prompts, tokenizer), add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    return list(tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


@contextmanager
def ablated(model: LlamaForCausalLM, neurons: Sequence[Planted]) -> Iterator[None]:
    """Set the neurons' down-projection columns to zero, and restore them exactly afterwards."""
    weights = [model.model.layers[layer].mlp.down_proj.weight for layer, _ in neurons]
    saved = [weight[:, index].detach().clone() for weight, (_, index) in zip(weights, neurons, strict=True)]
    with torch.no_grad():
        for weight, (_, index) in zip(weights, neurons, strict=True):
            weight[:, index] = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, (_, index), column in zip(weights, neurons, saved, strict=True):
                weight[:, index] = column


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write an ordinary Hugging Face checkpoint: safetensors weights, configs, tokenizer with its chat template.

    What `save_pretrained` writes, without its progress bar; the tied output embedding is left out, as there.
    """
    directory.mkdir(parents=True)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
