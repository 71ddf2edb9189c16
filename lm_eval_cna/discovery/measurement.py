"""One pass over a contrast set, and what it showed of the model.

`measure` runs the model once. The `Measurement` that it returns holds class means, from which every method finds its
circuit or vectors without running the model again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lm_eval_cna.contrast.contrast_set import ContrastSet, prompts_sha256
from lm_eval_cna.contrast.jailbreakbench import leakage_statement
from lm_eval_cna.contrast.loading import load_universal_prompts
from lm_eval_cna.contrast.splits import Split
from lm_eval_cna.discovery.activations import count_in_top, mean_activations
from lm_eval_cna.discovery.circuit_size import DEFAULT_FRACTION, circuit_size, size_of
from lm_eval_cna.discovery.means import Means
from lm_eval_cna.discovery.ranking import UNIVERSAL_SHARE, rank_neurons, universal_neurons
from lm_eval_cna.errors import ConfigError, ContrastError
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import describe_for_vectors, describe_model, identity_of
from lm_eval_cna.interventions.header import DiscoveryInfo, UniversalFilter, stamp
from lm_eval_cna.interventions.methods import METHODS, Read
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.neurons import Place
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

    def read(self, what: Read) -> torch.Tensor:
        """Class means of what was read, positive first: [2, neurons], or [2, layers, hidden]; of magnitudes [neurons].

        Raises:
            ConfigError: this was not read.
        """
        means: torch.Tensor | None = getattr(self.means, what)
        if means is None:
            raise ConfigError(f"{what} were not read in this measurement", do=f"measure with read=({what!r},)")
        return means

    def matched_to(self, circuit: Circuit) -> Measurement:
        """The same measurement with the universal neurons of a circuit, for what is compared with it."""
        found_as = {"universal_filter": circuit.discovery.universal_filter, "like_sha256": circuit.sha256}
        return replace(self, info=self.info.model_copy(update=found_as))

    def circuit(
        self,
        method: str,
        values: torch.Tensor,
        *,
        fraction: float | None = None,
        top_k: int | None = None,
        excluded_layers: Collection[int] = (),
        name: str | None = None,
    ) -> Circuit:
        """The circuit of the neurons of largest |value|, largest first, without the universal ones.

        Values are one a neuron, [neurons], and become the neurons' deltas. The size is a share of the model's neurons
        (`fraction`, 0.001 where neither is given) or a number (`top_k`). The name is by default the contrast set's.

        Raises:
            ConfigError: both sizes are given, or a size or layer is out of range.
        """
        size = size_of(self.architecture, fraction, top_k)
        neurons = rank_neurons(
            values, self.architecture.layout, size.neurons, excluded_layers=excluded_layers, universal=self.universal
        )
        sized = {
            "fraction": size.fraction,
            "top_k": size.neurons,
            "excluded_layers": tuple(sorted(set(excluded_layers))),
        }
        places = [neuron.place for neuron in neurons]
        return Circuit(
            method=method,
            name=name or self.contrast.name,
            model=describe_model(self.architecture, places, id=self.model_id, revision=self.revision),
            discovery=self.info.model_copy(update=sized),
            neurons=neurons,
        )

    def vectors(self, method: str, tensors: dict[int, torch.Tensor], *, layer: int | None = None) -> Vectors:
        """Vectors of some layers, [hidden] each; the method's row says where they are added.

        The header names `layer` where the method chooses one.
        """
        place = METHODS[method].acts
        assert place != "neurons"
        return Vectors(
            method=method,
            place=place,
            name=self.contrast.name,
            model=describe_for_vectors(self.architecture, tensors, id=self.model_id, revision=self.revision),
            discovery=self.info.model_copy(update={"universal_filter": None, "layer": layer}),
            tensors=tensors,
        )


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

    Example:
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> from lm_eval_cna import load_contrast, measure
        >>> from lm_eval_cna.discovery.methods import caa, cna
        >>> from lm_eval_cna.organism.store import ensure_organism
        >>> name = str(ensure_organism().instruct)
        >>> model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        >>> measured = measure(model, tokenizer, load_contrast("organism"))
        >>> len(cna.find(measured, top_k=20).neurons), len(caa.find(measured).layers)
        (20, 4)
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
        share=UNIVERSAL_SHARE,
        prompts=len(prompts),
        prompts_sha256=prompts_sha256(prompts),
        neurons=universal_neurons(counts, architecture.layout, len(prompts)),
    )
