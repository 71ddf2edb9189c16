"""Tiny checkpoints on disk, with a tokenizer and a chat template, as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE, adds_bos: bool = True) -> tf.PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, special tokens first."""
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    fast.chat_template = chat_template
    return fast


_SHAPE: dict[str, int] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_llama(folder: Path, *, seed: int = 0, width: int = 64, layers: int = 2, hidden: int = 32) -> Path:
    """A random Llama of byte vocabulary, saved with its tokenizer."""
    shape = {**_SHAPE, "hidden_size": hidden}
    config = tf.LlamaConfig(intermediate_size=width, num_hidden_layers=layers, **shape)
    return _save(tf.LlamaForCausalLM, config, folder, seed)


def save_mixture(folder: Path, *, seed: int = 0) -> Path:
    """A random Qwen2-MoE of byte vocabulary with a shared expert and a dense layer in the middle."""
    config = tf.Qwen2MoeConfig(
        intermediate_size=48,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        num_experts=5,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        num_hidden_layers=3,
        **_SHAPE,
    )
    return _save(tf.Qwen2MoeForCausalLM, config, folder, seed)


def _save(kind: Any, config: Any, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
