"""What one pass over a contrast set showed of a model, and every intervention that it can give.

`measuring.measure` runs the model; the `Measurement` then yields a circuit of any size and vectors without
running it again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lm_eval_cna.contrast.contrast_set import ContrastSet, prompts_sha256
from lm_eval_cna.contrast.jailbreakbench import leakage_statement
from lm_eval_cna.contrast.loading import load_universal_prompts
from lm_eval_cna.contrast.splits import Split
from lm_eval_cna.discovery import ranking
from lm_eval_cna.discovery.activations import count_in_top, mean_activations
from lm_eval_cna.discovery.circuit_size import DEFAULT_FRACTION, CircuitSize, circuit_size, size_of
from lm_eval_cna.discovery.means import Means
from lm_eval_cna.errors import ConfigError, ContrastError
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import describe_for_vectors, describe_model, identity_of
from lm_eval_cna.interventions.header import DiscoveryInfo, ModelInfo, UniversalFilter, stamp
from lm_eval_cna.interventions.methods import Read
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.neurons import Neuron, Place
from lm_eval_cna.transformer.prompts import Rendering, chat_template_sha256, pad_token_id


@dataclass(frozen=True)
class Measurement:
    """What one pass over a contrast set showed of a model."""

    architecture: Architecture
    """The model that was measured (it stays in memory as long as this does)."""
    contrast: ContrastSet
    """The prompts."""
    means: Means
    """Class means, positive first."""
    info: DiscoveryInfo
    """The header that every intervention made from this shares."""
    model_id: str | None = None
    """Where the model came from."""
    revision: str | None = None
    """Its revision."""
    split: Split | None = None
    """How the prompts were split into folds, where they were."""
    by_group: Means | None = None
    """Means of the split's groups, which `means` are put together from."""

    @property
    def universal(self) -> tuple[Place, ...]:
        """The universal neurons that circuits leave out."""
        return () if self.info.universal_filter is None else self.info.universal_filter.neurons

    def circuit(
        self,
        *,
        fraction: float | None = None,
        top_k: int | None = None,
        excluded_layers: Collection[int] = (),
        name: str | None = None,
    ) -> Circuit:
        """The neurons of largest |mean(positive) - mean(negative)|; `fraction` defaults to 0.001.

        Raises:
            ConfigError: both sizes are given, a size or layer is out of range, or neurons were not read.
        """
        size = size_of(self.architecture, fraction, top_k)
        delta = ranking.mean_difference(_read(self.means.neurons, "neurons"))
        neurons = self._ranked(delta, size, excluded_layers, self.universal)
        return Circuit(
            method="cna",
            name=name or self.contrast.name,
            model=self._model(neurons),
            discovery=_sized(self.info, size, excluded_layers),
            neurons=neurons,
        )

    def top_activation(
        self,
        *,
        fraction: float | None = None,
        top_k: int | None = None,
        excluded_layers: Collection[int] = (),
        like: Circuit | None = None,
        name: str | None = None,
    ) -> Circuit:
        """The neurons of largest mean |activation| over all prompts: strong neurons, whatever sets the classes apart.

        Args:
            fraction: size as a share of the model's neurons; 0.001 by default.
            top_k: size in neurons, instead of `fraction`.
            excluded_layers: layers to leave out.
            like: a circuit whose size, excluded layers and universal neurons are taken, instead of all of these. Its
                own neurons may be among the found ones: how many is the question.
            name: by default the contrast set's.

        Raises:
            ConfigError: both sizes are given, a size or layer is out of range, or magnitudes were not read.
        """
        info = self.info
        if like is not None:
            top_k, excluded_layers = len(like.neurons), like.discovery.excluded_layers
            found_as = {"universal_filter": like.discovery.universal_filter, "like_sha256": like.sha256}
            info = info.model_copy(update=found_as)
        size = size_of(self.architecture, fraction, top_k)
        universal = () if info.universal_filter is None else info.universal_filter.neurons
        magnitudes = _read(self.means.magnitudes, "magnitudes")
        ranked = self._ranked(magnitudes, size, excluded_layers, universal)
        return Circuit(
            method="top-activation",
            name=f"{name or self.contrast.name}-top-activation",
            model=self._model(ranked),
            discovery=_sized(info, size, excluded_layers),
            neurons=tuple(n._replace(delta=None) for n in ranked),  # what they were ranked by is no class difference
        )

    def vectors(self, *, name: str | None = None) -> Vectors:
        """CAA: in every layer, the class difference of what the MLP adds to the residual stream.

        Raises:
            ConfigError: writes were not read.
        """
        tensors = ranking.caa_vectors(_read(self.means.writes, "writes"))
        return Vectors(
            method="caa",
            place="write",
            name=name or self.contrast.name,
            model=self._model_of_vectors(tensors),
            discovery=self.info.model_copy(update={"universal_filter": None}),
            tensors=tensors,
        )

    def residual_vector(self, layer: int | None = None, *, name: str | None = None) -> Vectors:
        """CAA in one layer's residual stream; without `layer`, the one that `discovery.residual_layer` chooses.

        Raises:
            ConfigError: the layer is not in the model, or blocks were not read.
        """
        tensors = ranking.residual_vector(_read(self.means.blocks, "blocks"), layer)
        return Vectors(
            method="caa-residual",
            place="block",
            name=name or self.contrast.name,
            model=self._model_of_vectors(tensors),
            discovery=self.info.model_copy(update={"universal_filter": None, "layer": next(iter(tensors))}),
            tensors=tensors,
        )

    def _ranked(
        self, values: torch.Tensor, size: CircuitSize, excluded_layers: Collection[int], universal: Sequence[Place]
    ) -> tuple[Neuron, ...]:
        return ranking.rank_neurons(
            values, self.architecture.layout, size.neurons, excluded_layers=excluded_layers, universal=universal
        )

    def _model(self, neurons: Sequence[Neuron]) -> ModelInfo:
        places = [neuron.place for neuron in neurons]
        return describe_model(self.architecture, places, id=self.model_id, revision=self.revision)

    def _model_of_vectors(self, layers: Collection[int]) -> ModelInfo:
        return describe_for_vectors(self.architecture, layers, id=self.model_id, revision=self.revision)


def _sized(info: DiscoveryInfo, size: CircuitSize, excluded_layers: Collection[int]) -> DiscoveryInfo:
    """The header of a circuit of a size."""
    excluded = tuple(sorted(set(excluded_layers)))
    return info.model_copy(update={"fraction": size.fraction, "top_k": size.neurons, "excluded_layers": excluded})


def _read(means: Any, what: str) -> Any:
    if means is None:
        raise ConfigError(f"{what} were not read in this measurement", do=f"measure with read=({what!r},)")
    return means


@dataclass(frozen=True)
class Settings:
    """How prompts are rendered and run; the same for the contrast set and the universal filter's prompts."""

    rendering: Rendering = field(default_factory=Rendering)
    """From text to token ids, as the evaluation does it."""
    batch_size: int = 32
    """Prompts per forward pass."""
    progress: Progress = silent
    """Told of the prompts done after each batch, for each set of prompts anew."""


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
        circuit_size(fraction, architecture.num_neurons),
        batch_size=settings.batch_size,
        pad=pad_token_id(tokenizer),
        progress=settings.progress,
    )
    return UniversalFilter(
        fraction=fraction,
        share=ranking.UNIVERSAL_SHARE,
        prompts=len(prompts),
        prompts_sha256=prompts_sha256(prompts),
        neurons=ranking.universal_neurons(counts, architecture.layout, len(prompts)),
    )
