"""The long version: `python -m tests.fuzz --seconds 60`; exit status 1 where there is a finding.

Needs atheris (`make fuzz` installs it); `tests/integration/test_hostile_files.py` tries the same readers without.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, commit, describe, slug

SCHEMA = "lm-eval-cna/fuzz/1"
#: The most by which one input may raise the peak of the process's memory, MiB.
MOST_MIB = 256
_GRACE = 60  # seconds that a child may take beyond its time
_OPTIONS = ("-timeout=20", "-rss_limit_mb=4096", f"-max_len={2**20}", "-verbosity=0")  # libFuzzer's
_FORK = multiprocessing.get_context("fork")  # a child has everything imported


def main() -> int:
    """Fuzz every reader, print the table, write the record."""
    if importlib.util.find_spec("atheris") is None:
        print(
            f"error: atheris is not installed for Python {platform.python_version()} on {platform.system()} "
            f"{platform.machine()}; `make fuzz` installs it where it has a build: Linux on x86-64, "
            "Python 3.11 to 3.14. tests/integration/test_hostile_files.py needs none",
            file=sys.stderr,
        )
        return 2
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["lm_eval_cna"]):  # so nothing may have imported the package before
        from tests.fuzz.good import build
        from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(TARGETS), default=list(TARGETS), metavar="READER")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are findings; by default a temporary one")
    parser.add_argument("--output", type=Path, help="NAME.json and NAME.md; by default results/fuzz/<machine>")
    given = parser.parse_args()
    measured = commit()  # what was imported; a checkout may change while this runs
    keep = Path(tempfile.mkdtemp(prefix="fuzz-", dir=given.keep))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as scratch:
        good = Path(scratch) / "good"
        good.mkdir()
        build(good)
        rows = []
        for name in given.only:
            rows.append(row(name, good, keep, seconds=given.seconds, seed=given.seed))
            print(_line(rows[-1]), flush=True)
    record = {
        "schema": SCHEMA,
        "machine": describe(),
        "commit": measured,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": given.seconds,
        "seed": given.seed,
        "rows": rows,
    }
    output = given.output or ROOT / "results" / "fuzz" / slug()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    print(f"\n{markdown(record)}")
    found = sum(len(row["findings"]) for row in rows)
    if found:
        print(f"{found} findings; their inputs are in {keep}", file=sys.stderr)
    return int(found > 0)


def row(name: str, good: Path, keep: Path, *, seconds: int, seed: int) -> dict[str, Any]:
    """Fuzz one reader in a child, guided by the package's own branches; a child that dies is a finding."""
    folder = Path(shutil.copytree(good, good.with_name("tried")))
    mine = keep / name.replace(" ", "-").replace("'", "")
    mine.mkdir()
    seen = _FORK.Array("d", 3)
    child = _FORK.Process(target=_fuzz, args=(name, folder, mine, seen), kwargs={"seconds": seconds, "seed": seed})
    started = time.monotonic()
    child.start()
    child.join(seconds + _GRACE)
    if child.is_alive():
        child.kill()
        child.join()
    took = time.monotonic() - started
    shutil.rmtree(folder)
    findings = [json.loads(path.read_bytes()) for path in sorted(mine.glob("*.json"))]
    if child.exitcode != 0:
        lines = (mine / "stderr").read_text(errors="replace").splitlines()
        why = next((line for line in lines if "ERROR: libFuzzer" in line), " ".join(lines[-3:])[-300:])
        findings.append({"kind": "died", "where": "", "text": f"status {child.exitcode}: {why}", "input": ""})
    inputs, slowest, growth = seen
    total = {"target": name, "inputs": int(inputs), "seconds": took, "slowest": slowest, "growth_mib": growth}
    return {**total, "findings": findings}


def _fuzz(name: str, folder: Path, keep: Path, seen: Any, *, seconds: int, seed: int) -> None:
    """Fuzz one reader; does not return.

    Findings do not end the run: each is kept once, with the input that it was seen with first.

    Args:
        name: of the reader.
        folder: of good files, this process's own.
        keep: an empty folder, for findings and their inputs.
        seen: the number of inputs, the seconds of the slowest, and the growth of memory in MiB.
        seconds: for how long.
        seed: of libFuzzer.
    """
    import atheris

    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS, Finding, check, put

    os.dup2(os.open(keep / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    target = TARGETS[name]
    path = folder / target.file
    good = path.read_bytes()
    corpus = keep / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(good)
    known: set[tuple[str, str]] = set()
    first = _peak_mib()
    finding = check(target, path)
    assert finding is None, f"the good file of {name}: {finding}"

    def once(data: bytes) -> None:
        put(path, data)
        peak, started = _peak_mib(), time.process_time()
        found = check(target, path)
        took, grown = time.process_time() - started, _peak_mib() - peak
        seen[:] = (seen[0] + 1, max(seen[1], took), _peak_mib() - first)
        if found is None and grown > MOST_MIB:
            found = Finding("memory", "", f"{grown:.0f} MiB more")
        if found is not None and found[:2] not in known:
            kept = keep / f"{len(known)}.input"
            kept.write_bytes(data)
            kept.with_suffix(".json").write_text(json.dumps({**found._asdict(), "input": kept.name}))
            known.add(found[:2])

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        # Not from what was mutated last alone: most of that is refused at the first byte.
        return mutated(good if draw.random() < 0.4 else data, target.shape, draw)[:longest]

    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={keep}/", *_OPTIONS]
    atheris.Setup(["fuzz", *options, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def markdown(record: dict[str, Any]) -> str:
    """The table, and each finding."""
    machine, rows = record["machine"], record["rows"]
    every = {"target": "all", "findings": [found for row in rows for found in row["findings"]]}
    every |= {name: sum(row[name] for row in rows) for name in ("inputs", "seconds")}
    every |= {name: max(row[name] for row in rows) for name in ("slowest", "growth_mib")}
    lines = [
        f"# Fuzzing on {machine['cpu']}",
        "",
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Python {machine['python']}. Written by `make fuzz` on "
        f"{record['date']}, commit {record['commit']}: each reader for {record['seconds']} s, one process at a time.",
        "",
        "An input is accepted where the reader gives a value, or an error of one line, within a second of CPU time and "
        "without raising the peak of the process's memory by more than 256 MiB.",
        "",
        "| reader | inputs | seconds | slowest input, ms | growth of peak memory, MiB | findings |",
        "|---|---|---|---|---|---|",
        *map(_line, [*rows, every]),
        *(
            f"- {row['target']}: {found['kind']} {found['where']}: {found['text']}"
            for row in rows
            for found in row["findings"]
        ),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['target']} | {row['inputs']:,} | {row['seconds']:.0f} | {1000 * row['slowest']:.0f} | "
        f"{row['growth_mib']:.0f} | {len(row['findings'])} |"
    )


if __name__ == "__main__":
    sys.exit(main())
