"""The names that each known model family gives to its layers, MLPs, norms and experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The attribute names of one model family."""

    layers: str = "layers"
    """Name of the list of decoder layers in the stack."""
    mlp: str = "mlp"
    """Name of the MLP in a decoder layer."""
    down: str = "down_proj"
    """Name of the down-projection in the MLP."""
    post_norm: str | None = None
    """Name of the norm in a decoder layer between the MLP and the residual stream; None if there is none."""
    experts: str | None = None
    """Name of the routed experts in the MLP; None in a dense family. In a mixture-of-experts family a layer without
    them is dense."""
    shared: str | None = None
    """Name of the shared expert, which is an MLP, in the MLP; None if there is none."""


#: `config.model_type` of the decoder stack -> family.
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(),
    "gemma2": Family(post_norm="post_feedforward_layernorm"),
    "gemma3_text": Family(post_norm="post_feedforward_layernorm"),
    "olmo2": Family(post_norm="post_feedforward_layernorm"),
    "gpt2": Family(layers="h", down="c_proj"),
    "gpt_neox": Family(down="dense_4h_to_h"),
    "falcon": Family(layers="h", down="dense_4h_to_h"),
    "mixtral": Family(experts="experts"),
    "qwen2_moe": Family(experts="experts", shared="shared_expert"),
    "qwen3_moe": Family(experts="experts"),
    "olmoe": Family(experts="experts"),
    "gpt_oss": Family(experts="experts"),
}
