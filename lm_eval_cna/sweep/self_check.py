"""The proof that a sweep's steering does what it says, made before an answer is computed and kept with the run."""

from __future__ import annotations

from typing import Any, Literal, cast

from lm_eval_cna.errors import RunError
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.results.directory import SELF_CHECK, RunDirectory
from lm_eval_cna.sweep.begin import Begun
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.interventions import Interventions, rendering_of
from lm_eval_cna.validation.self_check import Proof, prove


def prove_sweep(begun: Begun) -> None:
    """Prove all interventions of a sweep on its model, and write down what was seen.

    A sweep that is continued proves anew: the model was loaded anew, maybe on another machine.

    Raises:
        SteeringError: something is not as it should be; no answer has been computed since.
    """
    proof = proof_of(begun.lm, begun.config, begun.interventions, begun.layout.mode)
    begun.directory.write_json(SELF_CHECK, proof.model_dump(mode="json"))


def proof_of(lm: CNAHFLM, config: SweepConfig, interventions: Interventions, mode: str) -> Proof:
    """Prove the interventions on a model, in the mode of the sweep.

    Raises:
        SteeringError: something is not as it should be.
    """
    return prove(
        lm.model,
        lm.tokenizer,
        interventions.files,
        mode=cast(Literal["rows", "auto", "fold", "hook"], mode),
        scale=config.scale,
        rendering=rendering_of(config, lm),
        architecture=lm.architecture,
    )


def proven_of(directory: RunDirectory, file: str | None) -> dict[str, Any] | None:
    """What was proven of one intervention, for a cell's results.

    Args:
        directory: the run's.
        file: where the run keeps the intervention; None for the baseline.

    Returns:
        None where the run made no proof.

    Raises:
        RunError: the file is damaged.
    """
    if not directory.has(SELF_CHECK):
        return None
    try:
        kept = Proof.model_validate(directory.read_json(SELF_CHECK))
    except ValueError as error:
        raise RunError(f"{directory.path / SELF_CHECK} is damaged", do="delete it and run the sweep again") from error
    seen = kept.interventions.get(file or "")
    return {"mode": kept.mode, "noise": kept.noise} | ({} if seen is None else seen.model_dump(mode="json"))
