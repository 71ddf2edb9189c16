"""One reader under atheris, guided by the package's own branches. Importing this module imports the package.

Findings do not end the run: each is written down once, with the input that it was seen with first.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["lm_eval_cna"]):
    from tests.fuzz.good import build
    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS, Finding, check, put

__all__ = ["TARGETS", "build", "fuzz"]

#: The most by which one input may raise the peak of the process's memory, MiB.
MOST_MIB = 256
#: Seconds after which libFuzzer ends the process, and MiB.
_HUNG, _FULL = 20, 4096
_LONGEST_INPUT = 2**20


class Log:
    """What was seen, kept in a file that is there however the process ends."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0.0
        self._started = time.monotonic()
        self._first = _peak_mib()
        self.inputs, self.slowest = 0, 0.0
        self.findings: dict[str, dict[str, Any]] = {}

    def add(self, data: bytes, took: float, finding: Finding | None) -> None:
        self.inputs += 1
        self.slowest = max(self.slowest, took)
        new = finding is not None and " ".join(finding[:2]) not in self.findings
        if finding is not None and new:
            kept = self._path.with_name(f"{self._path.stem}-{len(self.findings)}.input")
            kept.write_bytes(data)
            self.findings[" ".join(finding[:2])] = {**finding._asdict(), "input": kept.name}
        if new or time.monotonic() - self._written > 0.5:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        state = {
            "inputs": self.inputs,
            "seconds": self._written - self._started,
            "slowest": self.slowest,
            "growth_mib": _peak_mib() - self._first,
            "findings": list(self.findings.values()),
        }
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._path)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(name: str, folder: Path, log: Path, *, seconds: int, seed: int) -> None:
    """Fuzz one reader; does not return.

    Args:
        name: of the reader.
        folder: of good files, this process's own.
        log: what was seen is kept there, inputs beside it.
        seconds: for how long.
        seed: of libFuzzer.
    """
    target = TARGETS[name]
    path = folder / target.file
    good = path.read_bytes()
    finding = check(target, path)
    if finding is not None:
        raise AssertionError(f"the good file of {name}: {finding}")
    corpus = log.with_suffix("")
    corpus.mkdir()
    (corpus / "good").write_bytes(good)
    seen = Log(log)

    def once(data: bytes) -> None:
        put(path, data)
        peak, started = _peak_mib(), time.process_time()
        found = check(target, path)
        took, grown = time.process_time() - started, _peak_mib() - peak
        if found is None and grown > MOST_MIB:
            found = Finding("memory", "", f"{grown:.0f} MiB more")
        seen.add(data, took, found)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        # Not from what was mutated last alone: most of that is refused at the first byte.
        return mutated(good if draw.random() < 0.4 else data, target.shape, draw)[:longest]

    options = [
        *(f"-max_total_time={seconds}", f"-timeout={_HUNG}", f"-rss_limit_mb={_FULL}", f"-seed={seed}"),
        *(f"-max_len={_LONGEST_INPUT}", f"-artifact_prefix={log.parent}/", "-verbosity=0"),
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()
