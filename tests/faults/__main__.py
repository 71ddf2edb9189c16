"""The long fault campaign: `python -m tests.faults --seed 1 --times 6`; exit status 1 where one is lost or wrong."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import ROOT, commit, describe, slug
from tests.faults.bench import STAGES, Bench
from tests.faults.kinds import KINDS, Round, Verdict

VERDICTS = ("survived", "lost", "wrong", "skipped")


class Done(NamedTuple):
    """A round that is over."""

    kind: str
    command: str
    verdict: Verdict
    why: str


def main() -> int:
    """Run the rounds, print the table, and write it with the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=1, help="rounds of every kind on every command")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so long")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--short", action="store_true", help="each kind on one command only")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "faults" / slug(), help="without .json, .md")
    chosen = parser.parse_args()
    pairs = [(kind, command) for kind in chosen.kinds for command in KINDS[kind][1]]
    if chosen.short:  # from kind to kind another
        commands = [(kind, KINDS[kind][1]) for kind in chosen.kinds]
        pairs = [(kind, some[(number + 1) % len(some)]) for number, (kind, some) in enumerate(commands)]
    started = time.monotonic()
    done = []
    for one in rounds(chosen.times, pairs, seed=chosen.seed, seconds=chosen.seconds):
        done.append(one)
        print(f"{len(done):4} {one.kind:13} {one.command:8} {one.verdict} {one.why}", flush=True)
    bad = [one for one in done if one.verdict in ("lost", "wrong")]
    kept = {
        "command": f"python -m tests.faults {shlex.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "machine": describe(),
        "took_s": round(time.monotonic() - started, 1),
        "seed": chosen.seed,
        "rounds": len(done),
        **_counts(done),
        "by_kind": {
            kind: {command: _counts(_of(done, kind, command)) for command in KINDS[kind][1] if _of(done, kind, command)}
            for kind in dict.fromkeys(one.kind for one in done)
        },
        "bad": [f"{one.kind}, {one.command}: {one.verdict}: {one.why}" for one in bad],
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    page = _page(kept)
    chosen.output.with_suffix(".md").write_text(page)
    print(f"\n{page}\n{chosen.output}.json")
    return int(bool(bad))


def rounds(times: int, pairs: list[tuple[str, str]], *, seed: int, seconds: float) -> Iterator[Done]:
    """Try each pair of fault and command `times` times in an order drawn from the seed; begin none after `seconds`."""
    order = random.Random(seed)
    todo = [pair for _ in range(times) for pair in order.sample(pairs, len(pairs))]
    with tempfile.TemporaryDirectory() as scratch, Bench(Path(scratch)) as bench:
        started = time.monotonic()
        for number, (kind, command) in enumerate(todo):
            if time.monotonic() - started > seconds:
                break
            folder = bench.copy(STAGES[command], f"round{number}")
            draw = random.Random(f"{seed} {number} {kind} {command}")
            yield Done(kind, command, *KINDS[kind][0](Round(bench, command, folder, draw)))
            shutil.rmtree(folder, ignore_errors=True)


def _of(done: list[Done], kind: str, command: str) -> list[Done]:
    return [one for one in done if (one.kind, one.command) == (kind, command)]


def _counts(done: list[Done]) -> dict[str, int]:
    return {verdict: sum(one.verdict == verdict for one in done) for verdict in VERDICTS}


def _page(kept: dict[str, Any]) -> str:
    """A row a kind, a column a command: survived of tried, with what was lost or wrong."""
    machine = kept["machine"]
    lines = [
        "# Faults",
        "",
        f"{kept['rounds']} faults, seed {kept['seed']}: survived {kept['survived']}, lost {kept['lost']}, wrong "
        f"{kept['wrong']}, skipped {kept['skipped']}. {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}, commit {kept['commit']}, {kept['took_s']:.0f} s: `{kept['command']}`.",
        "",
        "Survived of tried, by command. Lost: finished work was done again or is gone, the command cannot go on, or it",
        "ended in a traceback. Wrong: numbers that differ from those of a run that nobody disturbed.",
        "",
        f"| fault | {' | '.join(STAGES)} | lost | wrong |",
        "|---" * (len(STAGES) + 3) + "|",
    ]
    everything: dict[str, Counter[str]] = {command: Counter() for command in STAGES}
    for commands in kept["by_kind"].values():
        for command, counts in commands.items():
            everything[command].update(counts)
    for kind, commands in [*kept["by_kind"].items(), ("all", everything)]:
        parts = []
        for counts in (commands.get(command, Counter()) for command in STAGES):
            tried = sum(counts.values()) - counts.get("skipped", 0)
            parts.append(f"{counts['survived']} of {tried}" if tried else "-")
        bad = [str(sum(counts[verdict] for counts in commands.values())) for verdict in ("lost", "wrong")]
        lines.append(f"| {' | '.join((kind, *parts, *bad))} |")
    return "\n".join([*lines, *(["", *(f"- {line}" for line in kept["bad"])] if kept["bad"] else [])]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
