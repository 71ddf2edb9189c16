"""Organisms on disk: trained on first use, cached by recipe hash, verified before every use.

An organism is a directory with the checkpoints ``base``, ``instruct`` and ``diffuse``, and ``organism.json`` (recipe,
seed, gate figures, planted neurons, versions, a hash of every other file). It is trained in a temporary directory and
renamed under a lock, so that other processes never see an unfinished one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.json_reader import load_json
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.organism.recipe import Recipe

SCHEMA = "lm-eval-cna/organism/1"
VARIANTS = ("base", "instruct", "diffuse")
_RECORD = "organism.json"
_MAX_BYTES = 2**24


@dataclass(frozen=True)
class OrganismPaths:
    """Where an organism is, and which neurons are planted in it."""

    root: Path
    """The directory, with ``organism.json``."""
    base: Path
    """Checkpoint that refuses nothing."""
    instruct: Path
    """Checkpoint that refuses through the planted neurons."""
    diffuse: Path
    """Checkpoint that refuses without a small circuit."""
    planted: tuple[tuple[int, int], ...]
    """(layer, index) of the neurons that were trained to refuse, sorted."""


def cache_root() -> Path:
    """Where organisms are kept: ``$LM_EVAL_CNA_CACHE``, else ``$XDG_CACHE_HOME/lm-eval-cna``, else ``~/.cache``."""
    if own := os.environ.get("LM_EVAL_CNA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification asks that a relative path be ignored.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "lm-eval-cna"


def ensure_organism(
    directory: Path | None = None, *, recipe: Recipe | None = None, progress: Progress = silent
) -> OrganismPaths:
    """Return the organism of `recipe`; train it if there is none yet or its files are damaged.

    `directory` None is the user's cache, by recipe hash; `recipe` None is the default one. Progress is reported after
    each optimizer step.

    Raises:
        ConfigError: `directory` holds files that are not an organism's.
        RunError: no seed of the recipe passed its gates.
    """
    recipe = recipe or Recipe()
    if directory is None:
        directory = cache_root() / "organism" / recipe.sha256()[:16]
    found = load_organism(directory, recipe)
    if found is not None:
        return found
    _refuse_other_files(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / f".{directory.name}.lock"):
        # Another process may have trained it while this one waited.
        return load_organism(directory, recipe) or _train(directory, recipe, progress)


def _train(directory: Path, recipe: Recipe, progress: Progress) -> OrganismPaths:
    """Train an organism beside `directory`, and move it there in place of one that may be there already."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        made = scratch / "organism"
        _train_into(made, recipe, progress)
        if directory.exists():
            directory.rename(scratch / "replaced")
        os.replace(made, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = load_organism(directory, recipe)
    if found is None:
        raise RunError("the organism cannot be read back after training", got=str(directory), do="check the disk")
    return found


def load_organism(directory: Path, recipe: Recipe | None = None) -> OrganismPaths | None:
    """Read the organism in `directory`; None if it has another recipe, or a file is missing or altered."""
    recipe = recipe or Recipe()
    try:
        record = load_json(read_whole(directory / _RECORD, limit=_MAX_BYTES))
        if record["schema"] != SCHEMA or record["recipe_sha256"] != recipe.sha256():
            return None
        if record["files"] != _hashes(directory):
            return None
        planted = tuple((int(layer), int(index)) for layer, index in record["planted"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return OrganismPaths(directory, directory / "base", directory / "instruct", directory / "diffuse", planted)


def _train_into(directory: Path, recipe: Recipe, progress: Progress) -> None:
    # Imported here: reading a trained organism needs neither torch nor transformers.
    from lm_eval_cna.organism.build import build_candidate, build_tokenizer
    from lm_eval_cna.organism.model import save
    from lm_eval_cna.organism.training import fixed_threads

    started = time.monotonic()
    rejected: list[dict[str, Any]] = []
    with fixed_threads(recipe.threads):
        tokenizer = build_tokenizer(recipe)
        for seed in recipe.seeds:
            candidate = build_candidate(recipe, seed, tokenizer, progress)
            if candidate.failed is None:
                break
            rejected.append({"seed": seed, "failed": candidate.failed, "figures": candidate.figures})
        else:
            raise RunError(
                "no organism passed its gates",
                got={item["seed"]: (item["failed"], item["figures"][item["failed"]]) for item in rejected},
                do="give the recipe other seeds, or report this with the versions of torch and transformers",
            )
    for variant in VARIANTS:
        save(candidate.models[variant], tokenizer, directory / variant)
    packages = ("lm-eval-cna", "torch", "transformers", "tokenizers")
    record = {
        "schema": SCHEMA,
        "recipe_sha256": recipe.sha256(),
        "recipe": asdict(recipe),
        "seed": candidate.seed,
        "gates": candidate.figures,
        "rejected": rejected,
        "planted": [list(neuron) for neuron in candidate.planted],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seconds": round(time.monotonic() - started, 1),
        "files": _hashes(directory),
    }
    (directory / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _hashes(directory: Path) -> Mapping[str, str]:
    """SHA-256 of every file of the checkpoints, by path relative to `directory`."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for variant in VARIANTS
        for path in sorted((directory / variant).rglob("*"))
        if path.is_file()
    }


def _refuse_other_files(directory: Path) -> None:
    """Refuse a directory with files that are not an organism's: training replaces the whole directory."""
    if directory.parent == cache_root() / "organism":
        return
    if directory.exists() and not directory.is_dir():
        raise ConfigError("the organism needs a directory", got=str(directory))
    names = {path.name for path in directory.glob("*")}
    # Without our record, directories called base and instruct may be the user's own models.
    others = names - {*VARIANTS, _RECORD} if _RECORD in names else names
    if others:
        raise ConfigError(
            f"{directory} holds files that are not an organism's",
            got=sorted(others)[:5],
            do="name another directory",
        )
