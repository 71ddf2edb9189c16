"""The interventions of a sweep: read or found once, controls drawn for them, all kept in the run directory."""

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
from lm_eval_cna.models.steered import Steered
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
    """How stable the circuit is over folds of the prompts, where that was measured."""

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
        """Hash of every intervention, by the file that keeps it."""
        return {name: intervention.sha256 for name, intervention in self.files.items()}

    def keep(self, directory: RunDirectory) -> None:
        """Write every intervention into the run directory, or those that are missing where the sweep has begun."""
        for name, intervention in self.files.items():
            if not directory.begun or not directory.has(name):
                intervention.write(directory.place(name))
        if self.stability is not None:
            self.stability.write(stability_path(directory.place(_file("cna"))))

    @property
    def files(self) -> dict[str, Circuit | Vectors]:
        """Every intervention, by the file that keeps it in the run directory."""
        found = {_file(method): intervention for method, intervention in self.found.items()}
        return found | {_file(*key): intervention for key, intervention in self.controls.items()}


def file_of(cell: Cell) -> str | None:
    """Where a run keeps what a cell steers with; None for the baseline."""
    if cell.method == "baseline":
        return None
    return _file(cell.method, cell.seed)


def find_interventions(config: SweepConfig, lm: Steered, directory: RunDirectory) -> Interventions:
    """Read, find and draw what the sweep needs; nothing is written.

    A sweep that is continued takes what its directory keeps, so it has one circuit throughout. Files in a directory
    without a manifest are ignored: the sweep that left them never began.

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
            asked = (
                {"like": found["cna"]}
                if _takes(method, "like")
                else {**size, "excluded_layers": config.excluded_layers}
            )
            taken = {name: value for name, value in asked.items() if _takes(method, name)}
            found[method] = finder_of(method)(measurement, **taken)
        if "cna" in missing and config.folds is not None:
            settings, circuit = Settings(rendering_of(config, lm)), cast("Circuit", found["cna"])
            stability = assess(lm.module, lm.tokenizer, measurement, circuit, settings=settings, mode=lm.mode)
    for intervention in found.values():
        if isinstance(intervention, Circuit) and config.top_k:
            intervention.prefix(max(config.top_k))  # refuses a size above the circuit's, before anything is asked
    return Interventions(found, _draw(config, lm, found, magnitudes, directory), config.scale, stability)


def measures(config: SweepConfig, directory: RunDirectory) -> bool:
    """Whether `find_interventions` runs the model: something is neither given nor kept, or controls need magnitudes."""
    return config.match == "activation" or None in _sources(config, directory).values()


def _sources(config: SweepConfig, directory: RunDirectory) -> dict[str, str | Path | None]:
    """Method -> the file that holds its intervention; None where it must be found."""
    given = {"cna": config.circuit, "caa": config.vectors}
    sources: dict[str, str | Path | None] = {}
    for method in _needed(config):
        kept = directory.path / _file(method)
        sources[method] = given.get(method) or (kept if directory.begun and kept.is_file() else None)
    return sources


def _needed(config: SweepConfig) -> list[str]:
    """Methods whose interventions are needed; a control needs the one that it is matched to."""
    needed = {CONTROLS.get(method, method) for method in config.compared}
    if any(_takes(method, "like") for method in needed):
        needed.add("cna")
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
    config: SweepConfig, lm: Steered, missing: list[str], *, fraction: float | None = None, top_k: int | None = None
) -> Measurement:
    read = [read for method in missing if (read := METHODS[method].reads) is not None]
    if config.match == "activation":
        read.append("magnitudes")
    contrast = load_contrast(config.contrast)
    # The filter is for methods that choose neurons; one that is matched to a circuit takes the circuit's.
    of_circuit: dict[str, Any] = {"universal_filter": False}
    if any(METHODS[method].acts == "neurons" and not _takes(method, "like") for method in missing):
        of_circuit = {
            "universal_filter": config.universal_filter,
            "universal_fraction": size_of(lm.architecture, fraction, top_k).share,
            "split": None if config.folds is None else split_prompts(contrast, config.folds),
        }
    return measure(
        lm.module,
        lm.tokenizer,
        contrast,
        read=tuple(dict.fromkeys(read)),
        settings=Settings(rendering_of(config, lm)),
        model_id=config.model,
        revision=lm.revision,
        **of_circuit,
    )


def rendering_of(config: SweepConfig, lm: Steered) -> Rendering:
    """How prompts outside the tasks are rendered: with the chat template, unless all tasks do without it."""
    return lm.rendering(any(task.chat_template is not False for task in config.tasks))


def _draw(
    config: SweepConfig, lm: Steered, found: dict[str, Circuit | Vectors], magnitudes: Any, directory: RunDirectory
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
                if _takes(method, "match"):
                    asked |= {"match": LOCAL.get(method, config.match), "magnitudes": magnitudes}
                drawn[method, seed] = finder_of(method)(lm.module, matched, seed=seed, **asked)
    return drawn


def _takes(method: str, argument: str) -> bool:
    return argument in arguments_of(method)


def _check_begun(directory: RunDirectory, name: str, intervention: Circuit | Vectors) -> None:
    """Refuse an intervention with another hash than the manifest of a sweep that has begun names."""
    if directory.begun:
        check_hash(directory, read_plan(directory), name, intervention.sha256)


def _of_method(method: str, intervention: Circuit | Vectors) -> Circuit | Vectors:
    """Refuse a file of another method: vectors given as a circuit, or a control as what was found."""
    if intervention.method != method:
        raise ConfigError(
            f"{method} needs {'vectors' if method in OF_VECTORS else 'a circuit'}", got=f"a {intervention.method} file"
        )
    return intervention
