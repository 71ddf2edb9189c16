"""The models of a table and their sizes.

Sizes come from results/published/models.jsonl or from a checkpoint's config.json, never from the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.jsonl import read_jsonl
from lm_eval_cna.organism.recipe import Recipe
from lm_eval_cna.organism.store import VARIANTS, cache_root, load_organism
from lm_eval_cna.paper.presets import Preset
from lm_eval_cna.resources import published_dir

ORGANISM = "organism"


@dataclass(frozen=True)
class Target:
    """A model to run."""

    name: str
    """Name on the hub or path; "organism:instruct" for our own."""
    variant: Literal["base", "instruct"]
    """"base" models read prompts without a chat template, organisms aside."""
    organism: bool = False
    """Whether it is an organism, which has its own tasks."""

    @property
    def slug(self) -> str:
        """Folder name, from the whole name so that two paths with the same end differ."""
        return "".join(char if char.isalnum() or char in ".-_" else "_" for char in self.name).strip("_")

    @property
    def family(self) -> str | None:
        """The family that the paper averages over, Llama or Qwen; None for others."""
        for family in ("Llama", "Qwen"):
            if family.lower() in self.name.lower():
                return family
        return None

    @property
    def chat_template(self) -> bool:
        """Whether prompts are rendered with the chat template."""
        return self.organism or self.variant == "instruct"


@dataclass(frozen=True)
class ModelSize:
    """The parts of a model's shape that its memory depends on."""

    parameters: int
    """Number of parameters."""
    layers: int
    """Number of layers."""
    kv_width: int
    """Width of a layer's keys, and of its values, for one token."""
    vocabulary: int
    """Number of tokens in the vocabulary."""
    source: str
    """Where the shape was found, in words."""


def resolve(preset: Preset, models: str | None) -> list[Target]:
    """The models to run: the table's, or those that the user names.

    Tables of pairs need base and instruct models. The twin of a published model is added; other models are given in
    pairs, the base model first.

    Raises:
        ConfigError: a name is empty or given twice, or a base model lacks its twin.
    """
    names = list(preset.models) if models is None else [part.strip() for part in models.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError("--models", got=models, allowed="names or paths separated by commas, each once")
    targets = [target for name in names for target in _expand(name, preset)]
    if not preset.pairs:
        return list(dict.fromkeys(targets))
    pairs: list[tuple[Target, Target]] = []
    waiting: list[Target] = []
    for target in targets:
        known = _pair_of(target)
        if known is None:
            waiting.append(target)
            if len(waiting) % 2 == 0:
                base, instruct = waiting[-2:]
                pairs.append((replace(base, variant="base"), replace(instruct, variant="instruct")))
        elif known not in pairs:
            pairs.append(known)
    if len(waiting) % 2:
        raise ConfigError(
            f"{preset.table} compares a base model with its instruct twin",
            got=waiting[-1].name,
            do="give both, the base model first",
        )
    return [target for pair in pairs for target in pair]


def pairs_of(targets: list[Target]) -> list[tuple[Target, Target]]:
    """(base, instruct) pairs of the list that `resolve` returns."""
    return list(zip(targets[::2], targets[1::2], strict=True))


def _expand(name: str, preset: Preset) -> list[Target]:
    kind, colon, variant = name.partition(":")
    if kind == ORGANISM and (not colon or variant):
        if colon and variant not in VARIANTS:
            raise ConfigError("no such organism", got=name, allowed=", ".join(f"{ORGANISM}:{v}" for v in VARIANTS))
        wanted = (
            [variant] if colon else ["base", "instruct"] if preset.pairs or preset.table == "layers" else ["instruct"]
        )
        return [Target(f"{ORGANISM}:{each}", "base" if each == "base" else "instruct", True) for each in wanted]
    if (Path(name).parent / "organism.json").is_file():
        return [Target(name, "base" if Path(name).name == "base" else "instruct", True)]
    known = known_models().get(name)
    return [Target(name, "instruct" if known is None else known["variant"])]


def _pair_of(target: Target) -> tuple[Target, Target] | None:
    """The (base, instruct) pair of a published model; None for others."""
    for name, row in known_models().items():
        if row["base"] is not None and target.name in (name, row["base"]):
            return Target(row["base"], "base"), Target(name, "instruct")
    return None


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Rows of results/published/models.jsonl by model."""
    return {row["model"]: row for _, row in read_jsonl(published_dir() / "models.jsonl")}


def size_of(target: Target) -> ModelSize | None:
    """A model's size, without using the network; None if nothing on this machine knows it."""
    row = known_models().get(target.name)
    if row is not None:
        return ModelSize(
            parameters=row["parameters"],
            layers=row["layers"],
            kv_width=row["kv_heads"] * row["head_dim"],
            vocabulary=row["vocabulary"],
            source="published shape",
        )
    path = target.name
    if path.startswith(f"{ORGANISM}:"):  # one that is trained already, or none
        organism = load_organism(cache_root() / "organism" / Recipe().sha256()[:16])
        path = path if organism is None else str(getattr(organism, path.partition(":")[2]))
    return _size_from_config(path)


def _size_from_config(path: str) -> ModelSize | None:
    """Count parameters on the meta device, from a local or cached config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        text = config.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, AttributeError):  # not a model of transformers: the run says more
        return None
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        kv_width=(getattr(text, "num_key_value_heads", None) or heads) * width,
        vocabulary=text.vocab_size,
        source="its config.json",
    )
