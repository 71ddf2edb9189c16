"""The long version: `python -m tests.fuzz --seconds 60`; exit status 1 where there is a finding.

Needs atheris (`make fuzz` installs it); `tests/integration/test_hostile_files.py` tries the same readers without.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = "lm-eval-cna/fuzz/1"
_GRACE = 60  # seconds that a child may take beyond its time


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
    from benchmarks.machine import ROOT, commit, describe, slug
    from tests.fuzz.worker import TARGETS, build  # what it imports is watched, so nothing else may import the package

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
    """Fuzz one reader in a child; one that dies is a finding, and another goes on for the time that is left."""
    total: dict[str, Any] = {"target": name, "inputs": 0, "seconds": 0.0, "slowest": 0.0, "growth_mib": 0.0}
    findings: dict[tuple[str, str], dict[str, Any]] = {}
    for attempt in range(5):
        log = keep / f"{name.replace(' ', '-').replace(chr(39), '')}-{attempt}.json"
        left = max(1, round(seconds - total["seconds"]))
        folder = good.with_name(log.stem)
        shutil.copytree(good, folder)
        ended = _child(name, folder, log, seconds=left, seed=seed + attempt)
        shutil.rmtree(folder)
        kept = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {"findings": []}
        for field in ("inputs", "seconds"):
            total[field] += kept.get(field, 0)
        for field in ("slowest", "growth_mib"):
            total[field] = max(total[field], kept.get(field, 0.0))
        findings |= {(found["kind"], found["where"]): found for found in kept["findings"]}
        if ended is not None:
            findings["died", ended] = {"kind": "died", "where": "", "text": ended, "input": ""}
        if ended is None or not kept.get("inputs") or total["seconds"] >= seconds - 1:
            break
    return {**total, "findings": list(findings.values())}


def _child(name: str, folder: Path, log: Path, *, seconds: int, seed: int) -> str | None:
    """Fuzz in a fork, which has everything imported; returns how it died, None where it did not."""
    from tests.fuzz.worker import fuzz

    said = log.with_suffix(".err")
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            fuzz(name, folder, log, seconds=seconds, seed=seed)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    until, killed = time.monotonic() + seconds + _GRACE, False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if not killed and time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    if status == 0:
        return None
    lines = said.read_text(errors="replace").splitlines()
    why = next((line for line in lines if "ERROR: libFuzzer" in line), " ".join(lines[-3:])[-300:])
    return f"status {os.waitstatus_to_exitcode(status)}: {why}"


def markdown(record: dict[str, Any]) -> str:
    """The table, and each finding."""
    machine, rows = record["machine"], record["rows"]
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
        *(_line(row) for row in rows),
        _line(
            {
                "target": "all",
                "inputs": sum(row["inputs"] for row in rows),
                "seconds": sum(row["seconds"] for row in rows),
                "slowest": max(row["slowest"] for row in rows),
                "growth_mib": max(row["growth_mib"] for row in rows),
                "findings": [found for row in rows for found in row["findings"]],
            }
        ),
    ]
    for row in rows:
        lines += [f"- {row['target']}: {found['kind']} {found['where']}: {found['text']}" for found in row["findings"]]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['target']} | {row['inputs']:,} | {row['seconds']:.0f} | {1000 * row['slowest']:.0f} | "
        f"{row['growth_mib']:.0f} | {len(row['findings'])} |"
    )


if __name__ == "__main__":
    sys.exit(main())
