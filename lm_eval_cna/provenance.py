"""Where an intervention comes from: the model it was made on and how it was found.

Floor 1. These records are the header of every intervention file (DESIGN section 6).
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

LayerIndex = Annotated[int, Field(ge=0, le=100_000)]
NeuronIndex = Annotated[int, Field(ge=0, le=2**31)]
#: Where a random control's neurons are drawn: in the layers of the circuit's, there among neurons of similar mean
#: |activation|, or anywhere in a third of the layers.
Match = Literal["layer", "activation", "bottom", "middle", "top"]
MATCHES: tuple[Match, ...] = get_args(Match)


class Record(BaseModel):
    """A frozen, exactly typed part of a file: unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class ModelInfo(Record):
    """The model an intervention was made on; None where a file of foreign origin does not say."""

    id: str | None = None
    revision: str | None = None
    architecture: str | None = None
    num_layers: Annotated[int, Field(ge=1)] | None = None
    mlp_width: Annotated[int, Field(ge=1)] | None = None
    hidden_size: Annotated[int, Field(ge=1)] | None = None
    dtype: str | None = None
    columns_sha256: str | None = None


class UniversalFilter(Record):
    """The neurons that were left out because they are active on everything (DESIGN section 7).

    Attributes:
        fraction: share of the model's neurons that count as the top of one prompt.
        share: share of the prompts on which a universal neuron is in that top.
        prompts: number of diverse prompts.
        prompts_sha256: hash of them.
        neurons: the universal neurons, (layer, index).
    """

    fraction: Annotated[float, Field(gt=0, le=1)]
    share: Annotated[float, Field(gt=0, le=1)]
    prompts: Annotated[int, Field(ge=1)]
    prompts_sha256: str
    neurons: tuple[Annotated[tuple[LayerIndex, NeuronIndex], Field(strict=False)], ...] = Field(
        default=(), strict=False
    )


class DiscoveryInfo(Record):
    """How an intervention was found: enough to find it again."""

    contrast: str | None = None
    contrast_sha256: str | None = None
    positive: int | None = None
    negative: int | None = None
    fraction: float | None = None
    top_k: int | None = None
    excluded_layers: tuple[int, ...] = Field(default=(), strict=False)
    universal_filter: UniversalFilter | None = None
    chat_template_sha256: str | None = None
    leakage: str | None = None
    layer: int | None = None
    seed: int | None = None
    match: str | None = None
    like_sha256: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str | None = None
