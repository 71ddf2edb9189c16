"""The long fault campaign: `python -m tests.faults --seed 1 --times 6`; exit status 1 where one is lost or wrong."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, commit, describe, slug
from tests.faults.campaign import pairs_of, record, run, table
from tests.faults.kinds import KINDS


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
    started = time.monotonic()
    done = run(
        chosen.times,
        seed=chosen.seed,
        pairs=pairs_of(chosen.kinds, short=chosen.short),
        seconds=chosen.seconds,
        tell=lambda line: print(line, flush=True),
    )
    kept = {
        "command": f"python -m tests.faults {shlex.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "machine": describe(),
        "took_s": round(time.monotonic() - started, 1),
        **record(done, seed=chosen.seed),
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    page = _page(kept, table(done))
    chosen.output.with_suffix(".md").write_text(page)
    print(f"\n{page}\n{chosen.output}.json")
    return int(kept["lost"] + kept["wrong"] > 0)


def _page(kept: dict[str, Any], counts: str) -> str:
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
        counts,
        *(["", *(f"- {line}" for line in kept["bad"])] if kept["bad"] else []),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
