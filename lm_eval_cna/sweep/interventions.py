"""The interventions of a sweep: read or discovered once, controls drawn from them, all kept in the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.contrast.splits import split_prompts
from lm_eval_cna.discovery.circuit_size import size_of
from lm_eval_cna.discovery.discover import arguments_of, finder_of
from lm_eval_cna.discovery.measurement import Measurement, Settings, measure
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit
from lm_eval_cna.interventions.methods import CONTROLS, LOCAL, METHODS, OF_VECTORS
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.stability import Stability, read_stability, stability_path
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import check_hash, read_plan
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.transformer.prompts import Rendering
from lm_eval_cna.validation.cross_validation import assess


@dataclass(frozen=True)
class Interventions:
    """What the cells of a sweep steer with."""

    found: dict[str, Circuit | Vectors]
    """Method -> the circuit or vectors, controls aside."""
    controls: dict[tuple[str, int], Circuit | Vectors]
    """(method, seed) -> the control."""
    scale: float
    """Factor of vectors."""
    stability: Stability | None = None
    """Of the circuit over prompts, where it is known."""

    def setting(self, cell: Cell) -> Setting:
        """What a cell does to the model."""
        if cell.method == "baseline":
            return Setting()
        chosen = self.found[cell.method] if cell.seed is None else self.controls[cell.method, cell.seed]
        if cell.size is not None and isinstance(chosen, Circuit):
            chosen = chosen.prefix(cell.size)
        return Setting(chosen, cell.multiplier, self.scale)

    @property
    def hashes(self) -> dict[str, str]:
        """Identity of every intervention, by the file that it is kept in."""
        return {name: intervention.sha256 for name, intervention in self.files.items()}

    def keep(self, directory: RunDirectory) -> None:
        """Write every intervention into the run directory; of a sweep that has begun, those that are missing."""
        for name, intervention in self.files.items():
            if not directory.begun or not directory.has(name):
                intervention.write(directory.place(name))
        if self.stability is not None:
            self.stability.write(stability_path(directory.place(_file("cna"))))

    @property
    def files(self) -> dict[str, Circuit | Vectors]:
        """Every intervention by the file that it is kept in, relative to the run directory."""
        found = {_file(method): intervention for method, intervention in self.found.items()}
        return found | {_file(*key): intervention for key, intervention in self.controls.items()}


def file_of(cell: Cell) -> str | None:
    """Where a run keeps what a cell steers with; None for the baseline."""
    if cell.method == "baseline":
        return None
    return _file(cell.method, cell.seed)


def find_interventions(config: SweepConfig, lm: CNAHFLM, directory: RunDirectory) -> Interventions:
    """Read, discover and draw what the sweep needs; nothing is written.

    What a sweep that has begun in the directory found is used again, so that a continued sweep has one circuit; what
    an earlier one left that never got so far is not.

    Raises:
        CNAError: a file cannot be read or does not fit the model or the sizes, or discovery fails.
    """
    sources = _sources(config, directory)
    found: dict[str, Circuit | Vectors] = {}
    for method, source in sources.items():
        if source is not None:
            found[method] = _of_method(method, read_intervention(source))
            _check_begun(directory, _file(method), found[method])
            check_fit(found[method], lm.architecture)
    missing = [method for method in sources if method not in found]
    magnitudes, stability = None, _known_stability(config.circuit, found.get("cna"))
    if missing or config.match == "activation":
        size: dict[str, Any] = {"top_k": max(config.top_k)} if config.top_k else {"fraction": config.fraction}
        measurement = _measure(config, lm, missing, **size)
        magnitudes = measurement.means.magnitudes
        for method in missing:
            asked = {**size, "excluded_layers": config.excluded_layers}
            taken = arguments_of(method)
            asked = {"like": found["cna"]} if "like" in taken else {k: v for k, v in asked.items() if k in taken}
            found[method] = finder_of(method)(measurement, **asked)
        if "cna" in missing and config.folds is not None:
            settings, circuit = Settings(rendering_of(config, lm)), cast("Circuit", found["cna"])
            stability = assess(lm.model, lm.tokenizer, measurement, circuit, settings=settings, mode=lm.mode)
    for intervention in found.values():
        if isinstance(intervention, Circuit) and config.top_k:
            intervention.prefix(max(config.top_k))  # refuses a size above the circuit's, before anything is asked
    return Interventions(found, _draw(config, lm, found, magnitudes, directory), config.scale, stability)


def measures(config: SweepConfig, directory: RunDirectory) -> bool:
    """Whether `find_interventions` runs the model: for what is neither given nor kept, or for magnitudes."""
    return config.match == "activation" or None in _sources(config, directory).values()


def _sources(config: SweepConfig, directory: RunDirectory) -> dict[str, str | Path | None]:
    """Method -> the file that holds its intervention; None where it must be discovered."""
    given = {"cna": config.circuit, "caa": config.vectors}
    sources: dict[str, str | Path | None] = {}
    for method in _needed(config):
        kept = directory.path / _file(method)
        sources[method] = given.get(method) or (kept if directory.begun and kept.is_file() else None)
    return sources


def _needed(config: SweepConfig) -> list[str]:
    """Methods whose interventions are needed; a control needs the one that it is matched to."""
    needed = {CONTROLS.get(method, method) for method in config.compared}
    needed |= {CONTROLS["random"]} if any("like" in arguments_of(method) for method in needed) else set()
    return [method for method in METHODS if method in needed]


def _known_stability(source: str | None, circuit: Circuit | Vectors | None) -> Stability | None:
    """What `discover --folds` left beside a circuit that is given; of another circuit it says nothing."""
    if source is None or circuit is None or source.startswith("hf://"):
        return None
    path = stability_path(Path(source))
    found = read_stability(path) if path.is_file() else None
    return found if found is not None and found.circuit_sha256 == circuit.sha256 else None


def _file(method: str, seed: int | None = None) -> str:
    """Where a run directory keeps an intervention."""
    row = METHODS[method]
    return f"controls/{method}-{seed}{row.suffix}" if row.kept_as is None else row.kept_as


def _measure(
    config: SweepConfig, lm: CNAHFLM, missing: list[str], *, fraction: float | None = None, top_k: int | None = None
) -> Measurement:
    read = [read for method in missing if (read := METHODS[method].reads) is not None]
    if config.match == "activation":
        read.append("magnitudes")
    contrast = load_contrast(config.contrast)
    # What else reads magnitudes takes its universal neurons from the circuit.
    of_circuit: dict[str, Any] = {"universal_filter": False}
    if "cna" in missing:
        of_circuit = {
            "universal_filter": config.universal_filter,
            "universal_fraction": size_of(lm.architecture, fraction, top_k).share,
            "split": None if config.folds is None else split_prompts(contrast, config.folds),
        }
    return measure(
        lm.model,
        lm.tokenizer,
        contrast,
        read=tuple(dict.fromkeys(read)),
        settings=Settings(rendering_of(config, lm)),
        model_id=config.model,
        revision=lm.revision,
        **of_circuit,
    )


def rendering_of(config: SweepConfig, lm: CNAHFLM) -> Rendering:
    """How prompts that are no task's are rendered: with the chat template, unless no task of the sweep is."""
    return lm.rendering(any(task.chat_template is not False for task in config.tasks))


def _draw(
    config: SweepConfig, lm: CNAHFLM, found: dict[str, Circuit | Vectors], magnitudes: Any, directory: RunDirectory
) -> dict[tuple[str, int], Circuit | Vectors]:
    drawn: dict[tuple[str, int], Circuit | Vectors] = {}
    identity: dict[str, Any] = {"model_id": config.model, "revision": lm.revision}
    for method, like in CONTROLS.items():
        for seed in config.control_seeds if method in config.compared else ():
            kept = directory.path / _file(method, seed)
            matched = found[like]
            if directory.begun and kept.is_file():
                drawn[method, seed] = read_intervention(kept)
                _check_begun(directory, _file(method, seed), drawn[method, seed])
            else:
                asked = dict(identity)
                if "match" in arguments_of(method):
                    asked |= {"match": LOCAL.get(method, config.match), "magnitudes": magnitudes}
                drawn[method, seed] = finder_of(method)(lm.module, matched, seed=seed, **asked)
    return drawn


def _check_begun(directory: RunDirectory, name: str, intervention: Circuit | Vectors) -> None:
    """A sweep goes on with what its manifest names by its hash, wherever that is read from."""
    if directory.begun:
        check_hash(directory, read_plan(directory), name, intervention.sha256)


def _of_method(method: str, intervention: Circuit | Vectors) -> Circuit | Vectors:
    """Refuse vectors given as a circuit, a control given as one, and the other way round."""
    if intervention.method != method:
        raise ConfigError(
            f"{method} needs {'vectors' if method in OF_VECTORS else 'a circuit'}", got=f"a {intervention.method} file"
        )
    return intervention
