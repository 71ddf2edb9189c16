"""Tiny random checkpoints of the families, in sizes that vLLM's CPU attention takes: heads of 32 channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

from tests.helpers.checkpoints import byte_tokenizer

#: Name for the tests -> class that a results file names.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
}
_IDS = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = {
    **_IDS,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GEMMA = {**_SIZES, "head_dim": 32, "query_pre_attn_scalar": 32}
#: Families whose configurations take other sizes than `_SIZES`.
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {**_SIZES, "sliding_window": None},
    "qwen3": {**_SIZES, "head_dim": 32},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {**_IDS, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 512},
    "gpt_neox": {name: size for name, size in _SIZES.items() if name != "num_key_value_heads"},
    "falcon": {**_IDS, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False},
}


def save(folder: Path, family: str, *, seed: int = 0, layers: int = 3) -> Path:
    """A random model of `family` with its tokenizer."""
    config = tf.AutoConfig.for_model(family, **_OWN.get(family, _SIZES))
    config.num_hidden_layers = layers
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, 0.12)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
