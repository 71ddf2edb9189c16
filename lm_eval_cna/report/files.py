"""Which files a report consists of, so that the next one in the same place leaves nothing of it behind."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.results.directory import RunDirectory

#: File that lists a report's tables and figures.
LIST = "report.files.json"
_MAX_BYTES = 2**22
_FOLDERS = {"tables": (".tex",), "figures": (".png", ".pdf")}


class _Listed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_: Literal["lm-eval-cna/report-files/1"] = Field(default="lm-eval-cna/report-files/1", alias="schema")
    files: list[str]


class ReportFiles:
    """The files of a report as it is written.

    Args:
        output: where the report goes.
    """

    def __init__(self, output: Path) -> None:
        self._directory = RunDirectory(output)
        self._written: set[str] = set()

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the report, whole or not at all.

        Raises:
            RunError: the disk is full or the directory cannot be written.
        """
        self._directory.write_text(name, text)
        self._written.add(name)

    def place(self, name: str) -> Path:
        """Where a file goes that is written by other means.

        Raises:
            RunError: a link leads out of the directory.
        """
        return self._directory.place(name)

    def add(self, paths: Iterable[Path]) -> None:
        """Note files that were written by other means."""
        self._written |= {path.relative_to(self._directory.path).as_posix() for path in paths}

    def finish(self) -> None:
        """Remove the tables and figures that an earlier report listed and this one did not write; list this one's.

        Raises:
            RunError: the list cannot be written.
        """
        for name in self._earlier() - self._written:
            with suppress(RunError):  # somebody put a folder or a link in its place
                self._directory.remove(name)
        listed = _Listed(files=sorted(name for name in self._written if _is_ours(name)))
        self._directory.write_text(LIST, listed.model_dump_json(by_alias=True, indent=1) + "\n")

    def _earlier(self) -> set[str]:
        """What the list names, as far as a report writes such files: the list may have been edited."""
        try:
            text = read_whole(self._directory.path / LIST, limit=_MAX_BYTES)
            return {name for name in _Listed.model_validate_json(text).files if _is_ours(name)}
        except (OSError, ValidationError):
            return set()


def _is_ours(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        len(path.parts) == 2
        and path.as_posix() == name
        and "\\" not in name
        and path.suffix in _FOLDERS.get(path.parts[0], ())
    )
