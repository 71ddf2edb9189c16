"""The cross-validation of a circuit, stored in a file beside it.

For each fold of the contrast set a circuit of the same size is found on the other folds and tested on the prompts that
were left out. `validation.cross_validation` measures, `analysis.stability` judges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.checksum import with_checksum, without_checksum
from lm_eval_cna.files.records import Record, first_error
from lm_eval_cna.interventions.header import ModelInfo, write_intervention

STABILITY_SCHEMA: Literal["lm-eval-cna/stability/1"] = "lm-eval-cna/stability/1"
_MAX_BYTES = 64 * 2**20
Share = Annotated[float, Field(ge=0, le=1)]
Kls = tuple[Annotated[float, Field(ge=0)] | None, ...]


class Fold(Record):
    """One fold: the circuit found without its prompts, tested on them.

    A delta here is the mean over the circuit's neurons of sign(d) * (mean(positive) - mean(negative)), where d is a
    neuron's delta on the prompts that the circuit was found on, in units of activation. It is smaller on the prompts
    left out, by as much as choosing the neurons on the other prompts overstates it. A KL is KL(untouched || ablated) of
    the first generated token, in nats.
    """

    positive: Annotated[int, Field(ge=1)]
    negative: Annotated[int, Field(ge=1)]
    """Numbers of prompts in the fold."""
    prompts_sha256: str
    """Hash of the prompts."""
    circuit_sha256: str
    """Hash of the circuit found on the prompts of the other folds."""
    of_whole: Share
    """Jaccard index of this circuit and the one found on all prompts."""
    delta_seen: float
    """Delta on the prompts of the other folds."""
    delta_left_out: float
    """Delta on the prompts of the fold."""
    kl: Kls
    """KL for each positive prompt of the fold, with the fold's circuit ablated; None if it is not finite."""
    kl_whole: Kls
    """The same with the circuit found on all prompts, this fold's included."""
    kl_random: Kls
    """The same with random neurons of the layers of the fold's circuit."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if {len(self.kl), len(self.kl_whole), len(self.kl_random)} != {self.positive}:
            raise ValueError("kl, kl_whole and kl_random need a value for every positive prompt of the fold")
        return self


class Stability(Record):
    """The stability of one circuit over prompts."""

    schema_: Literal["lm-eval-cna/stability/1"] = Field(default=STABILITY_SCHEMA, alias="schema")
    model: ModelInfo = Field(default_factory=ModelInfo)
    """The model that the circuit was found on."""
    circuit_sha256: str
    """Hash of the circuit found on all prompts."""
    size: Annotated[int, Field(ge=1)]
    """Neurons of this circuit and of each fold's circuit."""
    contrast: str
    contrast_sha256: str
    """Name and hash of the contrast set."""
    seed: int
    """Seed of the split into folds."""
    folds: Annotated[tuple[Fold, ...], Field(min_length=2)]
    found_in: tuple[Annotated[int, Field(ge=0)], ...]
    """For each neuron of the circuit, in its order, the number of folds whose circuit has it."""
    jaccard: tuple[Share, ...]
    """Jaccard index of each two folds' circuits, in the order (0, 1), (0, 2), ... (1, 2), ..."""
    jaccard_shuffled: tuple[Share, ...] | None
    """The same for circuits found with shuffled labels, a higher bar than random circuits since two folds share most of
    their prompts; None if there are too few prompts."""
    jaccard_random: Share
    """Expected Jaccard index of two random circuits."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries."""
    created: str | None = None
    """When it was measured, ISO 8601."""

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
            InterventionError: the file cannot be written.
        """
        write_intervention(path, with_checksum(json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1)))


def stability_path(circuit: Path) -> Path:
    """The file beside a circuit's with its stability: `circuit.stability.json` for `circuit.json`."""
    return circuit.with_name(f"{circuit.stem}.stability.json")


def read_stability(path: Path) -> Stability:
    """Read a stability record.

    Raises:
        InterventionError: the file is missing, damaged or of another schema.
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
    except ValueError as error:
        reason = first_error(error) if isinstance(error, ValidationError) else error
        raise InterventionError(f"{path} is no stability record of schema {STABILITY_SCHEMA}: {reason}") from error
