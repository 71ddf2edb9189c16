"""Writes the report of one run or of several: report.html, report.md, tables/*.tex and figures/*.{png,pdf}.

The whole report is made in a temporary folder and then renamed into place, file by file, so that an interrupted one
leaves the earlier report as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import RunError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.report.escape import slug, writable
from lm_eval_cna.report.figures import draw, signature
from lm_eval_cna.report.html import page
from lm_eval_cna.report.latex import latex_table
from lm_eval_cna.report.markdown import document
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.report.samples import browser_data
from lm_eval_cna.report.sections import Contents, contents
from lm_eval_cna.results.directory import RunDirectory

_FOLDERS = ("figures", "tables")
_MAX_BYTES = 2**26


def write_report(
    directories: Sequence[RunDirectory],
    output: Path,
    *,
    preface: str = "",
    budget: DamageBudget | None = None,
    samples: bool = True,
) -> Path:
    """Write the report into `output`; each run directory also gets its statistics as `evidence.json`.

    Tables and figures of an earlier report that this one does not have are removed; no other file is touched.

    Args:
        directories: finished runs.
        output: folder of the report; it is made.
        preface: Markdown that stands before the runs; trusted.
        budget: the damage that the best setting may do.
        samples: whether the page holds prompts and completions.

    Returns:
        The path of report.md; report.html is beside it.

    Raises:
        RunError: a run is unfinished or damaged, or the report cannot be written.
        InterventionError: a run's circuit is damaged.
    """
    runs = read_runs(directories, budget or DamageBudget())
    found = contents(runs, preface=preface)
    html = page(found, browser_data(runs) if samples else None)
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Inside the output, so that renaming never crosses from one disk to another.
        with TemporaryDirectory(prefix=".report-", dir=output) as folder:
            _write(Path(folder), found, html)
            _replace(output, Path(folder))
    except OSError as error:
        raise RunError(f"cannot write the report in {output}: {error.strerror or error}") from error
    return output / "report.md"


def _write(folder: Path, found: Contents, html: str) -> None:
    figures = _figures(folder, found)
    (folder / "tables").mkdir()
    taken: set[str] = set()
    for table in (*(table for part in found.parts for table in part.tables), found.profile, found.overlaps):
        if table is not None:
            name = slug(table.name, taken)
            text = f"% {signature(name)}\n{latex_table(table)}"
            (folder / "tables" / f"{name}.tex").write_bytes(writable(text).encode())
    (folder / "report.html").write_bytes(html.encode())
    (folder / "report.md").write_bytes(document(found, figures).encode())


def _figures(folder: Path, found: Contents) -> dict[str, list[str]]:
    """Draw all figures; returns the PNG files, relative to the report, by run."""
    drawn: dict[str, list[str]] = {}
    wanted = [
        (part.run.slug, f"{part.run.slug}-{name}", panels, f"{part.run.name}: {name}")
        for part in found.parts
        for name, panels in part.figures.items()
    ]
    wanted.append(("layers", "layers", found.layers, "Where the circuits sit"))
    taken: set[str] = set()
    for owner, name, panels, title in wanted:
        files = draw(panels, title=title, stem=folder / "figures" / slug(name, taken))
        drawn.setdefault(owner, []).extend(f"figures/{file.name}" for file in files if file.suffix == ".png")
    return drawn


def _replace(output: Path, made: Path) -> None:
    """Rename the files of a report that was just made into `output`; what only the earlier report had goes last.

    Raises:
        RunError: a folder is a link that leads out of `output`; nothing was replaced then.
    """
    directory = RunDirectory(output)
    folders = [directory.place(f"{folder}/any").parent for folder in _FOLDERS]
    # Figures and tables before the pages that name them.
    files = sorted(path for path in made.glob("*/*")) + sorted(path for path in made.iterdir() if path.is_file())
    places = [output / file.relative_to(made) for file in files]
    for file, place in zip(files, places, strict=True):
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path not in places and _is_of_a_report(path):
                path.unlink()


def _is_of_a_report(path: Path) -> bool:
    """Whether a report wrote this file under this name: a user's copy of a table under another name is the user's."""
    if path.suffix not in (".tex", ".png", ".pdf") or path.is_symlink():
        return False
    try:
        return signature(path.stem).encode() in read_whole(path, limit=_MAX_BYTES)
    except OSError:
        return False
