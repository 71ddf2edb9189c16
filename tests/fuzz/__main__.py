"""The long version: `python -m tests.fuzz --seconds 60`; exit status 1 where there is a finding.

Needs atheris (`make fuzz` installs it); `tests/unit/test_fuzz_readers.py` tries the same readers without.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, commit, describe, slug
from tests.fuzz.targets import TARGETS

SCHEMA = "lm-eval-cna/fuzz/1"
_START = 120  # seconds that a worker may take to import everything and make the good files


def main() -> int:
    """Fuzz every reader, print the table, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(TARGETS), default=list(TARGETS), metavar="READER")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are findings; by default a temporary one")
    parser.add_argument("--output", type=Path, help="NAME.json and NAME.md; by default results/fuzz/<machine>")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(
            f"error: atheris is not installed for Python {platform.python_version()}; `make fuzz` installs it where "
            "it has a build",
            file=sys.stderr,
        )
        return 2
    folder = (given.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in given.only:
        rows.append(row(name, given.seconds, given.seed, folder))
        print(_line(rows[-1]), flush=True)
    record = {
        "schema": SCHEMA,
        "machine": describe(),
        "commit": commit(),
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
        print(f"{found} findings; their inputs are in {folder}", file=sys.stderr)
    return int(found > 0)


def row(name: str, seconds: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fuzz one reader; a worker that dies is a finding, and another one goes on for the time that is left."""
    stem = name.replace(" ", "-").replace("'", "")
    corpus = folder / stem
    corpus.mkdir(exist_ok=True)
    total: dict[str, Any] = {"target": name, "inputs": 0, "seconds": 0.0, "slowest": 0.0, "growth_mib": 0.0}
    findings: dict[tuple[str, str], dict[str, Any]] = {}
    for attempt in range(5):
        log = folder / f"{stem}-{attempt}.json"
        left = max(1, round(seconds - total["seconds"]))
        worker = [sys.executable, "-m", "tests.fuzz.worker", name, f"--seconds={left}", f"--seed={seed + attempt}"]
        started = time.monotonic()
        try:
            done = subprocess.run(
                [*worker, f"--log={log}", f"--corpus={corpus}"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=left + _START,
                check=False,
            )
            status, said = done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            status, said = -9, f"still running: {error}"
        kept = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {"seconds": 0.0, "findings": []}
        for field in ("inputs", "seconds"):
            total[field] += kept.get(field, 0)
        for field in ("slowest", "growth_mib"):
            total[field] = max(total[field], kept.get(field, 0.0))
        findings |= {(found["kind"], found["where"]): found for found in kept["findings"]}
        if status != 0:
            why = next((line for line in said.splitlines() if "ERROR: libFuzzer" in line), said.strip()[-300:])
            findings["died", why] = {"kind": "died", "where": why, "text": f"status {status}", "input": ""}
        if status == 0 or time.monotonic() - started < 1 or total["seconds"] >= seconds - 1:
            break
    return {**total, "findings": list(findings.values())}


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
