"""Contrast sets by reference: a YAML file that names public data sets, from which the prompts are fetched.

Every source is pinned by a revision, a commit in its address or a hash. The choice of prompts is seeded. Prompts that
equal or resemble a prompt of a listed evaluation set are left out.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.leakage import find_leaks, normalise
from lm_eval_cna.errors import ContrastError
from lm_eval_cna.files.atomic import read_whole
from lm_eval_cna.files.records import Record, first_error
from lm_eval_cna.files.yaml_reader import load_yaml

_MAX_BYTES = 2**18
_MOST_FETCHED = 2**30
_COMMIT = re.compile(r"\b[0-9a-f]{40}\b")


class Source(Record):
    """One column of a public data set, or of a file by address."""

    dataset: str | None = None
    """A data set on the hub (owner/name), pinned by `revision`, or a folder."""
    config: str | None = None
    """The data set's configuration."""
    split: str = "train"
    """The data set's split."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """A commit of 40 hexadecimal digits; a folder needs none."""
    url: str | None = None
    """Instead of a data set: a CSV or JSON Lines file, pinned by a commit in its address or by `sha256`."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Hash of the file; a file with another hash is refused."""
    column: str
    """The column that holds the prompts."""
    where: dict[str, str] = Field(default={})
    """Column -> the value that it must have."""
    choose: Annotated[int, Field(ge=1)] | None = None
    """Number of prompts to choose; all by default."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if (self.dataset is None) == (self.url is None):
            raise ValueError("give either dataset or url")
        if self.dataset is not None and self.revision is None and not Path(self.dataset).is_dir():
            raise ValueError("a data set needs a revision (a commit of 40 hexadecimal digits)")
        if self.url is not None and self.sha256 is None and not _COMMIT.search(self.url):
            raise ValueError("a file needs a commit in its address, or a sha256")
        return self

    @property
    def label(self) -> str:
        """Name of the source in messages and results."""
        where = self.dataset or self.url or ""
        return f"{where} ({self.split})" if self.dataset else where


class ContrastSpec(Record):
    """A contrast set by reference."""

    name: str
    """Name of the set."""
    description: str = ""
    """What it is for."""
    seed: int = 0
    """Seed for choosing prompts."""
    positive: Source
    """Source of the prompts that show the behaviour."""
    negative: Source
    """Source of the prompts that do not."""
    exclude: tuple[Source, ...] = Field(default=(), strict=False)
    """Evaluation sets; prompts that equal or resemble one of theirs are left out."""


def fetch(path: Path) -> ContrastSet:
    """Read a YAML contrast set and fetch its prompts.

    Raises:
        ContrastError: the file is not a valid specification, a source cannot be fetched or has changed, or has too few
            prompts left.
    """
    spec = read_spec(path)
    evaluation = [prompt for source in spec.exclude for prompt in rows(source)]
    chosen: dict[str, tuple[str, ...]] = {}
    left_out = 0
    for label, source in (("positive", spec.positive), ("negative", spec.negative)):
        taken = {normalise(prompt) for prompts in chosen.values() for prompt in prompts}
        chosen[label], leaks = _choose(source, rows(source), evaluation, taken, f"{spec.name} {label} {spec.seed}")
        left_out += leaks
    leakage = None
    if spec.exclude:
        names = ", ".join(source.label for source in spec.exclude)
        report = find_leaks(chosen["positive"] + chosen["negative"], evaluation)
        leakage = f"{report.statement(names)}; {left_out} leaking candidates were left out"
    return ContrastSet(spec.name, **chosen, source=str(path), leakage=leakage)


def read_spec(path: Path) -> ContrastSpec:
    """Read and check a YAML file without fetching anything.

    Raises:
        ContrastError: the file cannot be read, or does not specify a contrast set.
    """
    try:
        return ContrastSpec.model_validate(load_yaml(read_whole(path, limit=_MAX_BYTES)))
    except ValidationError as error:
        raise ContrastError(f"{path}: {(first := first_error(error))}", got=first.got) from error
    except (OSError, ValueError) as error:
        raise ContrastError(f"cannot read {path} as YAML: {error}") from error


def _choose(
    source: Source, candidates: Sequence[str], evaluation: Sequence[str], taken: set[str], seed: str
) -> tuple[tuple[str, ...], int]:
    """Go through the candidates in a seeded order and keep those that are new and do not leak.

    Returns:
        The prompts, in the order of the source, and the number of leaking candidates that were passed over.
    """
    wanted = source.choose
    generator = random.Random(seed)  # unlike shuffle(), random() gives the same numbers in every version of Python
    order = sorted(range(len(candidates)), key=[generator.random() for _ in candidates].__getitem__)
    kept: list[int] = []
    leaks = 0
    for position in order:
        if len(kept) == wanted:
            break
        key = normalise(candidates[position])
        if not key or key in taken:
            continue
        taken.add(key)
        if find_leaks([candidates[position]], evaluation).matches:
            leaks += 1
        else:
            kept.append(position)
    if not kept or (wanted is not None and len(kept) < wanted):
        raise ContrastError(
            f"{source.label} has {len(kept)} prompts left of {len(candidates)}",
            got=f"{wanted or 'at least 1'} wanted, {leaks} left out because they leak",
            do="choose fewer",
        )
    return tuple(candidates[position] for position in sorted(kept)), leaks


def rows(source: Source) -> list[str]:
    """Fetch the prompts of a source, stripped of white space at both ends; blank ones are left out.

    Raises:
        ContrastError: the source cannot be fetched, has changed, or lacks a column.
    """
    import datasets

    try:
        if source.url is not None:
            table = _read_file(source.url, source.sha256)
        else:
            pin = {"split": source.split, "revision": source.revision or "main"}
            table = datasets.load_dataset(source.dataset, source.config, **pin)
    except ContrastError:
        raise
    except Exception as error:  # loaders raise errors of many kinds: network, hub, parser
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ContrastError(f"cannot fetch {source.label}: {reason}") from error
    missing = [name for name in (source.column, *source.where) if name not in table.column_names]
    if missing:
        raise ContrastError(
            f"{source.label} has no column {missing[0]}", got=table.column_names, do="name one of these"
        )
    wanted = source.where.items()
    kept = (row[source.column] for row in table if all((row[name] or "") == value for name, value in wanted))
    return [prompt.strip() for prompt in kept if isinstance(prompt, str) and prompt.strip()]


def _read_file(url: str, sha256: str | None) -> Any:
    """Download a CSV or JSON Lines file or find it in the cache, check its hash and parse it."""
    import datasets

    local = datasets.DownloadManager().download(url)
    # Devices, which have no end, are refused by read_whole.
    found = hashlib.sha256(read_whole(Path(local), limit=_MOST_FETCHED)).hexdigest()
    if sha256 is not None and found != sha256:
        raise ContrastError(f"{url} has changed", got=f"sha256 {found}", allowed=sha256)
    parser = "csv" if url.endswith(".csv") else "json"
    return datasets.load_dataset(parser, data_files=str(local), split="train")
