"""A run directory: manifest, interventions, one results file per cell and evaluation setting, summary.

Importable without torch. Every file is written under a temporary name and renamed, so that it is whole. Every JSON file
holds its checksum (`lm_eval_cna.files.checksum`), so that a file damaged later is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.atomic import is_file, read_whole, write_whole
from lm_eval_cna.files.checksum import with_checksum, without_checksum

#: What the self-check measured before the sweep computed anything (`lm_eval_cna.validation.self_check`).
SELF_CHECK = "self_check.json"
#: First-token divergence of every cell.
HARMLESS_KL = "harmless_kl.json"
#: Files of measurements, besides the cells' results.
MEASURED = ("summary.json", SELF_CHECK, HARMLESS_KL)
_RESULTS = 2**31  # results of whole MMLU with samples take some hundred MiB
_MAX_BYTES = 2**28  # of every other file
MANIFEST_SCHEMA = "lm-eval-cna/manifest/1"


class RunDirectory:
    """The files of one sweep.

    Args:
        path: the directory; it need not be there yet.

    Attributes:
        without_checksum: the files that were read and hold no checksum: made by hand or by an older version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.without_checksum: set[str] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the files that were read, for whoever reads the numbers."""
        if not self.without_checksum:
            return ()
        first, more = min(self.without_checksum), len(self.without_checksum) - 1
        named = f"{first} and {more} more files have" if more else f"{first} has"
        return (f"{named} no checksum (made by hand or by an older version), so damage would not be noticed",)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; the lock goes with the process, however it ends.

        Raises:
            RunError: another process holds it, or the directory cannot be written.
        """
        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is running a sweep in {self.path}", do="wait for it, or choose another --output"
            ) from error
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def adopt(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, or make sure that the one that is there has the same plan.

        Results without a manifest belong to an unknown plan and are removed. Responses stay: they are found by what was
        asked.

        Raises:
            RunError: the directory holds another sweep, naming the first field that differs.
        """
        if self.begun:
            gone = dict.fromkeys(field for field in self._plan() if field not in manifest["plan"])
            self.check_plan({**manifest["plan"], **gone})
        else:
            self._forget()
            self.write_json("manifest.json", {"schema": MANIFEST_SCHEMA, **manifest})

    def _forget(self) -> None:
        for name in ("cells/*/*.json", *MEASURED):
            for path in self.path.glob(name):
                self.remove(path.relative_to(self.path).as_posix())

    @property
    def begun(self) -> bool:
        """Whether a sweep has written its manifest here."""
        return self.has("manifest.json")

    def check_plan(self, plan: dict[str, Any]) -> None:
        """Compare fields of a plan with the manifest's, if there is one.

        Raises:
            RunError: the directory holds another sweep, naming the first field that differs.
        """
        if not self.begun:
            return
        kept = self._plan()
        plan = json.loads(_writable(json.dumps(plan, ensure_ascii=False)))
        for field in plan:
            if kept.get(field) != plan.get(field):
                begun = repr(kept.get(field))
                raise RunError(
                    f"{self.path} holds a sweep with another {field}",
                    got=plan.get(field),
                    allowed=f"{begun if len(begun) <= 200 else begun[:200] + '...'}, as it was begun",
                    do="choose another --output",
                )

    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            RunError: this is no run directory, or the manifest is damaged.
        """
        manifest = self.read_json("manifest.json")
        if manifest.get("schema") != MANIFEST_SCHEMA or not isinstance(manifest.get("plan"), dict):
            raise RunError(
                f"{self.path} has a manifest of another schema", got=manifest.get("schema"), allowed=MANIFEST_SCHEMA
            )
        return manifest

    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = self.manifest()["plan"]
        return plan

    def results_name(self, cell: str, setting: str) -> str:
        """Where the results of a cell under an evaluation setting are, relative to the directory."""
        return f"cells/{cell}/{setting}.json"

    def has(self, name: str) -> bool:
        """Whether a file is there; files are renamed into place, so it is whole then."""
        return is_file(self._at(name))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the directory's JSON files.

        Raises:
            RunError: it is missing, cut short, changed since it was written, or not an object, or the name is invalid.
        """
        path = self._at(name)
        try:
            document, has_checksum = without_checksum(
                read_whole(path, limit=_RESULTS if name.startswith("cells/") else _MAX_BYTES)
            )
        except FileNotFoundError as error:
            raise RunError(
                f"no {name} in {self.path}", do="is it the directory of a finished `lm-eval-cna sweep`?"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}", do="delete it and run the sweep again") from error
        if not isinstance(document, dict):
            raise RunError(f"{path} does not hold an object", do="delete it and run the sweep again")
        if not has_checksum:
            self.without_checksum.add(name)
        return document

    def write_json(self, name: str, document: dict[str, Any], default: Any = str) -> None:
        """Write a JSON file with its checksum, whole or not at all.

        Raises:
            RunError: the disk is full or the directory cannot be written.
        """
        text = json.dumps(document, indent=1, default=default, ensure_ascii=False)
        self._write(name, with_checksum(_writable(text)))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all.

        Raises:
            RunError: the disk is full or the directory cannot be written.
        """
        self._write(name, text.encode())

    def _write(self, name: str, data: bytes) -> None:
        path = self.place(name)
        try:
            write_whole(path, data)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}") from error

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is removed already.

        Raises:
            RunError: the directory cannot be written.
        """
        path = self.place(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror or error}") from error

    def place(self, name: str) -> Path:
        """Where a file is written or removed: in the directory, and not where a folder in it leads by a link.

        A link to a file is replaced and not followed. Reading follows links: a run in the hub's cache consists of them.

        Raises:
            RunError: the name, or a link, leads out of the directory.
        """
        path = self._at(name)
        inside, folder = os.path.realpath(self.path), os.path.realpath(path.parent)
        if folder != inside and not folder.startswith(f"{inside}{os.sep}"):
            raise RunError(f"{path.parent} leads out of {self.path}, to {folder}", do="remove the link")
        return path

    def _at(self, name: str) -> Path:
        """The path of a name, which may come from a manifest."""
        parts = name.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise RunError("a name leads out of the run directory", got=name)
        return self.path.joinpath(*parts)


def find_runs(path: Path) -> list[RunDirectory]:
    """The run directory at `path`, or those directly below it, by name.

    Raises:
        RunError: there is none.
    """
    if (path / "manifest.json").is_file():
        return [RunDirectory(path)]
    found = sorted(child.parent for child in path.glob("*/manifest.json")) if path.is_dir() else []
    if not found:
        raise RunError("no run directory", got=str(path), allowed="a folder with manifest.json, or a folder of such")
    return [RunDirectory(child) for child in found]


def _writable(text: str) -> str:
    """Text that UTF-8 can hold: half of a surrogate pair, as in the name of a file, becomes a question mark."""
    return text.encode(errors="replace").decode()
