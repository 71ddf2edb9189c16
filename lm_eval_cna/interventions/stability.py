"""How stable a circuit is over prompts, as a file beside the circuit's. Pure Python.

The contrast set is split into folds; for each a circuit of the same size is found on the prompts of the other
folds, and held against the prompts that were left out (`folds.assess` measures, `analysis.stability` judges):

- overlap: the Jaccard index of each two folds' circuits. Two such circuits share most of their prompts, so the index of
  circuits drawn at random is too low a bar; beside it stands that of circuits found in the same way after labels were
  shuffled, which set nothing apart.
- delta: mean over the circuit's neurons of sign(d) * (mean(positive) - mean(negative)), where d is a neuron's delta on
  the prompts that the circuit was found on. There it is the mean |delta|; on the prompts that were left out it is
  smaller by as much as the choice of neurons flattered it. In units of activation.
- kl: KL(untouched || circuit ablated) of the first generated token, in nats, on each positive prompt that was left out:
  of the fold's circuit, which has not seen the prompt; of the whole circuit, which has; and of random neurons of the
  fold's circuit's layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import read_whole, write_whole
from lm_eval_cna.files.checksum import with_checksum, without_checksum
from lm_eval_cna.files.records import Record, first_error
from lm_eval_cna.interventions.header import ModelInfo

STABILITY_SCHEMA: Literal["lm-eval-cna/stability/1"] = "lm-eval-cna/stability/1"
_MAX_BYTES = 64 * 2**20
Share = Annotated[float, Field(ge=0, le=1)]
Kls = tuple[Annotated[float, Field(ge=0)] | None, ...]


class Fold(Record):
    """One fold: the circuit that was found without its prompts, and what it does on them."""

    positive: Annotated[int, Field(ge=1)]
    negative: Annotated[int, Field(ge=1)]
    """Prompts of the fold."""
    prompts_sha256: str
    """Hash of them."""
    circuit_sha256: str
    """Hash of the circuit found on the prompts of the other folds."""
    of_whole: Share
    """Jaccard index of that circuit and the whole one."""
    delta_seen: float
    """Delta on the prompts of the other folds."""
    delta_left_out: float
    """Delta on the fold's own."""
    kl: Kls
    """For each positive prompt of the fold, its circuit ablated; None where it is not a finite number."""
    kl_whole: Kls
    """The same with the whole circuit."""
    kl_random: Kls
    """The same with random neurons."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if {len(self.kl), len(self.kl_whole), len(self.kl_random)} != {self.positive}:
            raise ValueError("kl, kl_whole and kl_random need a value for every positive prompt of the fold")
        return self


class Stability(Record):
    """The stability of one circuit over prompts."""

    schema_: Literal["lm-eval-cna/stability/1"] = Field(default=STABILITY_SCHEMA, alias="schema")
    model: ModelInfo = Field(default_factory=ModelInfo)
    """That it was found on."""
    circuit_sha256: str
    """Hash of the whole circuit, found on all prompts."""
    size: Annotated[int, Field(ge=1)]
    """Neurons of it and of each fold's."""
    contrast: str
    contrast_sha256: str
    """The contrast set."""
    seed: int
    """Of the split."""
    folds: Annotated[tuple[Fold, ...], Field(min_length=2)]
    """The folds."""
    found_in: tuple[Annotated[int, Field(ge=0)], ...]
    """For each neuron of the whole circuit, in its order, how many folds' circuits hold it."""
    jaccard: tuple[Share, ...]
    """Of each two folds' circuits, in the order (0, 1), (0, 2), ... (1, 2), ..."""
    jaccard_shuffled: tuple[Share, ...] | None
    """The same for circuits found with shuffled labels; None where there are too few prompts."""
    jaccard_random: Share
    """To expect of two circuits drawn at random."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries."""
    created: str | None = None
    """When."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        pairs = len(self.folds) * (len(self.folds) - 1) // 2
        if any(len(found) != pairs for found in (self.jaccard, self.jaccard_shuffled or self.jaccard)):
            raise ValueError(f"{len(self.folds)} folds have {pairs} pairs")
        if len(self.found_in) != self.size or max(self.found_in) > len(self.folds):
            raise ValueError("found_in needs a number of folds for every neuron of the circuit")
        return self

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all.

        Raises:
            InterventionError: the file cannot be written there.
        """
        try:
            write_whole(path, with_checksum(json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1)))
        except OSError as error:
            raise InterventionError(f"cannot write {path}: {error.strerror or error}") from error


def stability_path(circuit: Path) -> Path:
    """Where the stability of a circuit file is kept: beside it, `circuit.stability.json` for `circuit.json`."""
    return circuit.with_name(f"{circuit.stem}.stability.json")


def read_stability(path: Path) -> Stability:
    """Read a record.

    Raises:
        InterventionError: it is missing, damaged or of another schema.
    """
    try:
        document, _ = without_checksum(read_whole(path, limit=_MAX_BYTES))
        return Stability.model_validate_json(json.dumps(document))
    except FileNotFoundError as error:
        raise InterventionError(
            "no such stability record", got=str(path), do="make it with `lm-eval-cna discover --folds`"
        ) from error
    except OSError as error:
        raise InterventionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise InterventionError(
            f"{path} is no stability record of schema {STABILITY_SCHEMA}: {first_error(error)}"
        ) from error
    except ValueError as error:
        raise InterventionError(f"{path} is no stability record of schema {STABILITY_SCHEMA}: {error}") from error
