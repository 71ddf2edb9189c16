"""The files: ``results/benchmarks/<machine>.json`` and a Markdown table beside it.

A run of some rows replaces those rows and leaves the others, each with its own date and commit.
"""

from __future__ import annotations

import json
import os
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, describe
from benchmarks.sides import ROWS, Outcome, Row

SCHEMA = "lm-eval-cna/benchmarks/1"


def entry(row: Row, outcome: Outcome, *, threads: int, seed: int, command: str) -> dict[str, Any]:
    """A row as plain data."""
    measured: dict[str, Any] = {"skipped": outcome.skipped}
    if outcome.skipped is None:
        measured = {
            "figure": outcome.value,
            "range": [min(outcome.values), max(outcome.values)],
            "verdict": row.verdict(outcome.value),
            "rounds": len(outcome.values),
            "ours": _side(outcome.labels[0], outcome.ours),
            "theirs": _side(outcome.labels[1], outcome.theirs),
        }
    return {
        "name": row.name,
        "what": row.what,
        "against": row.against,
        "unit": row.unit,
        "target": row.target,
        **measured,
        "note": outcome.note,
        "details": outcome.details,
        "threads": threads,
        "seed": seed,
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _side(label: str, seconds: tuple[float, ...]) -> dict[str, Any] | None:
    if not seconds:
        return None
    return {"label": label, "median_seconds": statistics.median(seconds), "seconds": list(seconds)}


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write both files, `path` with ``.json`` and ``.md``; rows of an earlier run that were not run now are kept."""
    kept: dict[str, Any] = {}
    source = path.with_suffix(".json")
    if source.is_file():
        before = json.loads(source.read_text(encoding="utf-8"))
        kept = {found["name"]: found for found in before["rows"]} if before.get("schema") == SCHEMA else {}
    kept |= {found["name"]: found for found in entries}
    rows = [kept[name] for name in ROWS if name in kept]
    data = {"schema": SCHEMA, "machine": describe(), "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(source, json.dumps(data, indent=1) + "\n")
    _replace(path.with_suffix(".md"), markdown(data))


def markdown(data: dict[str, Any]) -> str:
    """The table, then each row's notes and further figures."""
    machine = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"# Speed on {machine['gpu'] or machine['cpu']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
        + (f", {machine['gpu']}" if machine["gpu"] else "")
        + f". {machine['platform']}, Python {machine['python']}, {versions}.",
        "",
        "Written by `make bench`. The two sides of a row are timed in turn in one process; the figure is the median",
        "over rounds of (seconds of the other) / (seconds of ours), with its range.",
        "",
        "| row | what | against | ours | other | figure | range | rounds | target | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in data["rows"]]
    for row in data["rows"]:
        if row.get("skipped"):
            continue
        facts = [f"- {name}: {_plain(value)}" for name, value in row["details"].items()]
        made = (
            f"{row['date']}, commit {row['commit']}, {row['threads']} threads, seed {row['seed']}: `{row['command']}`"
        )
        lines += [
            "",
            f"## {row['name']}",
            "",
            *([row["note"], ""] if row["note"] else []),
            *facts,
            f"- measured {made}",
        ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    cells = [row["name"], row["what"], row["against"]]
    if row.get("skipped"):
        cells += ["-", "-", f"skipped: {row['skipped']}", "-", "-", row["target"], "-"]
    else:
        low, high = row["range"]
        cells += [
            *(f"{side['median_seconds']:.3g} s" if side else "-" for side in (row["ours"], row["theirs"])),
            f"{row['figure']:.3g} {row['unit']}",
            f"{low:.3g} to {high:.3g}",
            str(row["rounds"]),
            row["target"],
            row["verdict"],
        ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
