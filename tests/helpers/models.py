"""Tiny random models of every family that we claim, made from their configs; no hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA = {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "n_embd", "n_inner", "ffn_hidden_size")


def _config(family: str) -> tf.PretrainedConfig:
    ids = {key: SIZES[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    match family:
        case "llama":
            return tf.LlamaConfig(**SIZES)
        case "mistral":
            return tf.MistralConfig(**SIZES, sliding_window=16)
        case "qwen2":
            return tf.Qwen2Config(**SIZES)
        case "qwen3":
            return tf.Qwen3Config(**SIZES, head_dim=8)
        case "phi3":
            return tf.Phi3Config(**SIZES)
        case "gemma2":
            return tf.Gemma2Config(**GEMMA)
        case "gemma3_text":
            return tf.Gemma3TextConfig(**GEMMA)
        case "olmo2":
            return tf.Olmo2Config(**SIZES)
        case "gpt2":
            return tf.GPT2Config(**ids, n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=256)
        case "gpt_neox":
            return tf.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"})
        case "falcon":
            return tf.FalconConfig(
                **ids, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_hidden_size=48, alibi=False
            )
        case "mixtral":
            return tf.MixtralConfig(**SIZES, num_local_experts=4)
        case "qwen2_moe":  # the middle layer is dense, and wider than an expert
            return tf.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=40, mlp_only_layers=[1])
        case "qwen3_moe":
            return tf.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=8, mlp_only_layers=[0])
        case "olmoe":
            return tf.OlmoeConfig(**{**SIZES, "intermediate_size": 24}, num_experts=5, num_experts_per_tok=2)
        case "gpt_oss":
            return tf.GptOssConfig(
                **{**SIZES, "intermediate_size": 24}, num_local_experts=5, num_experts_per_tok=2, head_dim=8
            )
        case "granitemoe":  # not one of ours
            return tf.GraniteMoeConfig(**SIZES, num_local_experts=4)
    raise KeyError(family)


DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox", "falcon")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")


def tiny(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, times: int = 1) -> tf.PreTrainedModel:
    """A random model of `family` in evaluation mode, with weights large enough that steering shows.

    `times` widens a dense one: every width of its configuration times that.
    """
    config = _config(family)
    for name in set(_WIDTHS) & set(vars(config)):
        if times > 1 and getattr(config, name) is not None:
            setattr(config, name, getattr(config, name) * times)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.15)
                elif "norm" in name and parameter.ndim == 1 and "weight" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


TINY: dict[str, Callable[[], tf.PreTrainedModel]] = {
    family: (lambda family=family: tiny(family)) for family in (*DENSE, *MIXTURES, "granitemoe")
}


def prompts(batch: int = 3, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length] without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch, length, vocabulary]."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@contextmanager
def left_unchanged(model: Any) -> Iterator[None]:
    """Fail unless the block leaves the model's weights bit for bit as they were, and no hook behind."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "_apply_gate" in vars(m) for m in model.modules())


def letters() -> tf.PreTrainedTokenizerFast:
    """A tokenizer with one token a character and a chat template, for models of the vocabulary `VOCAB`."""
    characters = [chr(code) for code in range(32, 32 + VOCAB - 4)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = "{% for m in messages %}#{{ m['content'] }}|{% endfor %}A:"
    return fast
