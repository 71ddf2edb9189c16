"""Read an intervention file of either kind: a circuit's JSON or the safetensors of vectors."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.files.atomic import is_file
from lm_eval_cna.files.records import first_error
from lm_eval_cna.interventions import hub
from lm_eval_cna.interventions.circuit import Circuit, read_circuit_fields
from lm_eval_cna.interventions.vectors import Vectors, read_vectors_fields


def read_intervention(source: str | Path) -> Circuit | Vectors:
    """Read a circuit or vectors from a file or from the Hugging Face hub.

    Args:
        source: a path, or `hf://owner/repo/file@revision`. A JSON file is a circuit, also in the reference
            repository's form `{"layer,position,neuron": value}`; a `.safetensors` file is vectors.

    Raises:
        InterventionError: the file is missing, damaged, of another schema, or inconsistent.

    Example:
        >>> from pathlib import Path
        >>> from lm_eval_cna import Circuit, read_intervention
        >>> circuit = Circuit(method="cna", name="refusal", neurons=[(2, 7, -1.5), (0, 3, 0.5)])
        >>> circuit.write(Path("circuit.json"))
        >>> read_intervention("circuit.json") == circuit
        True
    """
    path = hub.fetch(str(source)) if str(source).startswith(hub.SCHEME) else Path(source)
    if not is_file(path):
        raise InterventionError("no such intervention file", got=str(path), do="make one with `lm-eval-cna discover`")
    try:
        if path.suffix == ".safetensors":
            return Vectors.model_validate(read_vectors_fields(path))
        return Circuit.model_validate(read_circuit_fields(path))
    except OSError as error:
        raise InterventionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = first_error(error)
        raise InterventionError(f"{path} is not a valid intervention file: {first}", got=first.got) from error
