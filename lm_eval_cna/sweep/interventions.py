"""The interventions of a sweep: read or discovered once, controls drawn from them, all kept in the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm_eval_cna.activations import Read
from lm_eval_cna.attribution import Settings, control, measure
from lm_eval_cna.contrast import load_contrast
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.fit import check_fit
from lm_eval_cna.intervention import Circuit, Vectors, read_intervention
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering import Setting
from lm_eval_cna.sweep.cells import Cell
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.rundir import RunDirectory

_FILES = {"cna": "circuit.json", "caa": "vectors.safetensors", "caa-residual": "residual.safetensors"}
_READS: dict[str, Read] = {"cna": "neurons", "caa": "writes", "caa-residual": "blocks"}


@dataclass(frozen=True)
class Interventions:
    """What the cells of a sweep steer with.

    Attributes:
        found: method -> the circuit or vectors, controls aside.
        controls: (method, seed) -> the control.
        scale: factor of vectors.
    """

    found: dict[str, Circuit | Vectors]
    controls: dict[tuple[str, int], Circuit | Vectors]
    scale: float

    def setting(self, cell: Cell) -> Setting:
        """What a cell does to the model."""
        if cell.method == "baseline":
            return Setting()
        chosen = self.found[cell.method] if cell.seed is None else self.controls[cell.method, cell.seed]
        if cell.size is not None and isinstance(chosen, Circuit):
            chosen = chosen.prefix(cell.size)
        return Setting(chosen, cell.multiplier, self.scale)


def prepare(config: SweepConfig, lm: CNAHFLM, directory: RunDirectory) -> Interventions:
    """Read, discover and draw what the sweep needs, and keep every file in the run directory.

    What an earlier, interrupted run left there is used again, so that a continued sweep has one circuit.

    Raises:
        CNAError: a file cannot be read or does not fit the model, or discovery fails.
    """
    methods = _needed(config)
    found: dict[str, Circuit | Vectors] = {}
    given = {"cna": config.circuit, "caa": config.vectors, "caa-residual": None}
    for method in methods:
        kept = directory.path / _FILES[method]
        source = kept if kept.is_file() else given[method]
        if source is not None:
            found[method] = _of_kind(method, read_intervention(source))
    missing = [method for method in methods if method not in found]
    means = None
    if missing or config.match == "activation":
        measurement = _measure(config, lm, missing)
        means = measurement.means
        makers: dict[str, Any] = {
            "cna": lambda: measurement.circuit(**_size(config), excluded_layers=config.excluded_layers),
            "caa": measurement.vectors,
            "caa-residual": measurement.residual_vector,
        }
        found |= {method: makers[method]() for method in missing}
    for method, intervention in found.items():
        check_fit(intervention, lm.architecture)
        if not directory.has(_FILES[method]):
            intervention.write(directory.path / _FILES[method])
    magnitudes = means.magnitudes.mean(0) if means is not None and means.magnitudes is not None else None
    return Interventions(found, _controls(config, lm, found, magnitudes, directory.path), config.scale)


def _needed(config: SweepConfig) -> list[str]:
    """Methods whose interventions are needed; a control needs the one that it is matched to."""
    like = {"random": "cna", "random-vectors": "caa"}
    return sorted({like.get(method, method) for method in config.compared})


def _size(config: SweepConfig) -> dict[str, Any]:
    return {"top_k": max(config.top_k)} if config.top_k else {"fraction": config.fraction}


def _measure(config: SweepConfig, lm: CNAHFLM, missing: list[str]) -> Any:
    read: list[Read] = [_READS[method] for method in missing]
    if config.match == "activation":
        read.append("magnitudes")
    settings = Settings(
        chat_template_args=lm.chat_template_args,
        add_bos_token=lm.add_bos_token,
        batch_size=lm.batch_size if isinstance(lm.batch_size, int) else 16,
    )
    share = max(config.top_k) / lm.architecture.num_neurons if config.top_k else config.fraction
    return measure(
        lm.model,
        lm.tokenizer,
        load_contrast(config.contrast),
        read=tuple(read),
        universal_filter=config.universal_filter,
        universal_fraction=min(share, 1.0),
        settings=settings,
        model_id=config.model,
        revision=lm.revision,
    )


def _controls(
    config: SweepConfig,
    lm: CNAHFLM,
    found: dict[str, Circuit | Vectors],
    magnitudes: torch.Tensor | None,
    path: Path,
) -> dict[tuple[str, int], Circuit | Vectors]:
    drawn: dict[tuple[str, int], Circuit | Vectors] = {}
    for method, like, suffix in (("random", "cna", "json"), ("random-vectors", "caa", "safetensors")):
        for seed in range(config.random) if method in config.compared else ():
            kept = path / "controls" / f"{method}-{seed}.{suffix}"
            if kept.is_file():
                drawn[method, seed] = read_intervention(kept)
                continue
            matched = found[like]
            identity: dict[str, Any] = {"model_id": config.model, "revision": lm.revision}
            if isinstance(matched, Circuit):
                made: Circuit | Vectors = control(lm.model, matched, seed=seed, magnitudes=magnitudes, **identity)
            else:
                made = control(lm.model, matched, seed=seed, **identity)
            made.write(kept)
            drawn[method, seed] = made
    return drawn


def _of_kind(method: str, intervention: Circuit | Vectors) -> Circuit | Vectors:
    """Refuse vectors given as a circuit, and the other way round."""
    wanted = Circuit if method == "cna" else Vectors
    if not isinstance(intervention, wanted):
        raise ConfigError(
            f"{method} needs {'a circuit' if wanted is Circuit else 'vectors'}", got=f"a {intervention.method} file"
        )
    return intervention
