"""The long fault campaign: `python -m tests.faults --seed 1 --times 5`; exit status 1 where one is lost or wrong."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.faults.campaign import record, run, table
from tests.faults.kinds import KINDS


def main() -> int:
    """Run the rounds, print the table and the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=5, help="rounds of every kind on every command")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so long")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--output", type=Path, help="write the record there, NAME.json and NAME.md")
    chosen = parser.parse_args()
    done = run(
        chosen.times,
        seed=chosen.seed,
        kinds=chosen.kinds,
        seconds=chosen.seconds,
        tell=lambda line: print(line, flush=True),
    )
    kept = record(done, seed=chosen.seed)
    print(f"\n{table(done)}\n\n{json.dumps(kept)}")
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
        head = f"# Faults\n\n{kept['rounds']} rounds, seed {chosen.seed}: survived of tried, by command.\n"
        chosen.output.with_suffix(".md").write_text(f"{head}\n{table(done)}\n")
    return int(kept["lost"] + kept["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
