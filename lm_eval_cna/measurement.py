"""One pass over the prompts, and every intervention that it can give.

Floor 3. `measure` runs the model; the `Measurement` then yields a circuit of any size and vectors without running it
again.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

import lm_eval_cna
from lm_eval_cna import discovery
from lm_eval_cna.activations import Progress, Read, count_in_top, mean_activations
from lm_eval_cna.architecture import Architecture, find_architecture
from lm_eval_cna.contrast import ContrastSet, load_universal_prompts, prompts_sha256
from lm_eval_cna.errors import ConfigError, ContrastError
from lm_eval_cna.fit import describe_for_vectors, describe_model
from lm_eval_cna.intervention import Circuit, Vectors
from lm_eval_cna.leakage import leakage_statement
from lm_eval_cna.means import Means
from lm_eval_cna.neurons import Neuron, Place
from lm_eval_cna.prompts import chat_template_sha256, encode_prompts, pad_token_id, render_prompts
from lm_eval_cna.provenance import DiscoveryInfo, ModelInfo, UniversalFilter
from lm_eval_cna.splits import Split

DEFAULT_FRACTION = 0.001
_version = cache(version)  # reading a package's metadata takes milliseconds


@dataclass(frozen=True)
class Settings:
    """How prompts are rendered and run; the same for the contrast set and the universal filter's prompts.

    Attributes:
        chat_template: apply the tokenizer's chat template, if it has one, as the evaluation does.
        chat_template_args: passed to the template.
        add_bos_token: force special tokens on or off; None leaves it to the tokenizer.
        batch_size: prompts per forward pass.
        progress: called with (prompts done, prompts in all) after each batch, for each set of prompts anew.
    """

    chat_template: bool = True
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    add_bos_token: bool | None = None
    batch_size: int = 32
    progress: Progress | None = None


@dataclass(frozen=True)
class Measurement:
    """What one pass over a contrast set showed of a model.

    Attributes:
        architecture: the model that was measured (it stays in memory as long as this does).
        contrast: the prompts.
        means: class means, positive first.
        info: the header that every intervention made from this shares.
        model_id: where the model came from.
        revision: its revision.
        split: how the prompts were split into folds, where they were.
        by_group: means of the split's groups, which `means` are put together from.
    """

    architecture: Architecture
    contrast: ContrastSet
    means: Means
    info: DiscoveryInfo
    model_id: str | None = None
    revision: str | None = None
    split: Split | None = None
    by_group: Means | None = None

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
        k, share = size_of(self.architecture, fraction, top_k)
        delta = discovery.mean_difference(_read(self.means.neurons, "neurons"))
        neurons = self._ranked(delta, k, excluded_layers, self.universal)
        info = self.info.model_copy(
            update={"fraction": share, "top_k": k, "excluded_layers": tuple(sorted(set(excluded_layers)))}
        )
        return Circuit(
            method="cna",
            name=name or self.contrast.name,
            model=self._model(neurons),
            discovery=info,
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
        k, share = size_of(self.architecture, fraction, top_k)
        universal = () if info.universal_filter is None else info.universal_filter.neurons
        magnitudes = _read(self.means.magnitudes, "magnitudes")
        ranked = self._ranked(magnitudes, k, excluded_layers, universal)
        return Circuit(
            method="top-activation",
            name=f"{name or self.contrast.name}-top-activation",
            model=self._model(ranked),
            discovery=info.model_copy(
                update={"fraction": share, "top_k": k, "excluded_layers": tuple(sorted(set(excluded_layers)))}
            ),
            neurons=tuple(n._replace(delta=None) for n in ranked),  # what they were ranked by is no class difference
        )

    def vectors(self, *, name: str | None = None) -> Vectors:
        """CAA: in every layer, the class difference of what the MLP adds to the residual stream.

        Raises:
            ConfigError: writes were not read.
        """
        tensors = discovery.caa_vectors(_read(self.means.writes, "writes"))
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
        tensors = discovery.residual_vector(_read(self.means.blocks, "blocks"), layer)
        return Vectors(
            method="caa-residual",
            place="block",
            name=name or self.contrast.name,
            model=self._model_of_vectors(tensors),
            discovery=self.info.model_copy(update={"universal_filter": None, "layer": next(iter(tensors))}),
            tensors=tensors,
        )

    def _ranked(
        self, values: torch.Tensor, k: int, excluded_layers: Collection[int], universal: Sequence[Place]
    ) -> tuple[Neuron, ...]:
        return discovery.rank_neurons(
            values, self.architecture.layout, k, excluded_layers=excluded_layers, universal=universal
        )

    def _model(self, neurons: Sequence[Neuron]) -> ModelInfo:
        places = [neuron.place for neuron in neurons]
        return describe_model(self.architecture, places, id=self.model_id, revision=self.revision)

    def _model_of_vectors(self, layers: Collection[int]) -> ModelInfo:
        return describe_for_vectors(self.architecture, layers, id=self.model_id, revision=self.revision)


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
    encode = _encoder(architecture, tokenizer, settings)
    rows = encode(contrast.prompts)
    universal = None
    if universal_filter and {"neurons", "magnitudes"} & set(read):
        universal = _universal_filter(architecture, encode, universal_fraction, settings, pad_token_id(tokenizer))
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
        chat_template_sha256=chat_template_sha256(tokenizer) if settings.chat_template else None,
        leakage=leakage_statement(contrast.prompts, contrast.leakage)
        if check_leakage
        else "not checked: not asked for",
        **stamp(),
    )
    said_id, said_revision = identity_of(model)
    return Measurement(
        architecture, contrast, means, info, model_id or said_id, revision or said_revision, split, by_group
    )


def size_of(architecture: Architecture, fraction: float | None, top_k: int | None) -> tuple[int, float | None]:
    """The size of a circuit, and the fraction that it came from."""
    if fraction is not None and top_k is not None:
        raise ConfigError("a circuit has one size", got=f"fraction {fraction} and top-k {top_k}", do="give one of them")
    if top_k is not None:
        if not 1 <= top_k <= architecture.num_neurons:
            raise ConfigError(
                "circuit size", got=top_k, allowed=f"1 to {architecture.num_neurons}, the model's neurons"
            )
        return top_k, None
    fraction = DEFAULT_FRACTION if fraction is None else fraction
    return discovery.circuit_size(fraction, architecture.num_neurons), fraction


def _encoder(
    architecture: Architecture, tokenizer: Any, settings: Settings
) -> Callable[[Sequence[str]], list[list[int]]]:
    limit = getattr(getattr(architecture.stack, "config", None), "max_position_embeddings", None)

    def encode(prompts: Sequence[str]) -> list[list[int]]:
        texts = render_prompts(
            prompts, tokenizer, chat_template=settings.chat_template, chat_template_args=settings.chat_template_args
        )
        rows = encode_prompts(texts, tokenizer, add_bos_token=settings.add_bos_token)
        longest = max(rows, key=len)
        if isinstance(limit, int) and len(longest) > limit:
            raise ContrastError(
                "a prompt is longer than the model can read", got=f"{len(longest)} tokens", allowed=f"up to {limit}"
            )
        return rows

    return encode


def _universal_filter(
    architecture: Architecture,
    encode: Callable[[Sequence[str]], list[list[int]]],
    fraction: float,
    settings: Settings,
    pad: int,
) -> UniversalFilter:
    prompts = load_universal_prompts()
    k = discovery.circuit_size(fraction, architecture.num_neurons)
    counts = count_in_top(
        architecture, encode(prompts), k, batch_size=settings.batch_size, pad=pad, progress=settings.progress
    )
    return UniversalFilter(
        fraction=fraction,
        share=discovery.UNIVERSAL_SHARE,
        prompts=len(prompts),
        prompts_sha256=prompts_sha256(prompts),
        neurons=discovery.universal_neurons(counts, architecture.layout, len(prompts)),
    )


def _read(means: Any, what: str) -> Any:
    if means is None:
        raise ConfigError(f"{what} were not read in this measurement", do=f"measure with read=({what!r},)")
    return means


def identity_of(model: Any) -> tuple[str | None, str | None]:
    """Where a model says that it was loaded from, and at which revision."""
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", None) or None, getattr(config, "_commit_hash", None)


def stamp() -> dict[str, Any]:
    """The versions that were used, and now."""
    versions = {name: _version(name) for name in ("torch", "transformers")}
    versions |= {"lm_eval_cna": lm_eval_cna.__version__, "python": platform.python_version()}
    return {"versions": versions, "created": datetime.now(UTC).isoformat(timespec="seconds")}
