"""``python -m benchmarks [--only NAME]... [--rounds N]``: run rows, print the table, write results/benchmarks/."""

from __future__ import annotations

import io
import logging
import shlex
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import rows  # noqa: F401  # registers the rows
from benchmarks.machine import ROOT, slug
from benchmarks.record import entry, write
from benchmarks.sides import ROWS
from benchmarks.workbench import Workbench


def main(
    only: Annotated[list[str] | None, typer.Option(help="A row, or the start of several rows' names.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of every row, instead of each row's own.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; by default torch's own choice.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Where to write, without suffix.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Print and write nothing.")] = False,
    names: Annotated[bool, typer.Option("--list", help="Print the rows' names and end.")] = False,
) -> None:
    """Time rows of the table."""
    chosen = [row for row in ROWS.values() if not only or any(row.name.startswith(name) for name in only)]
    if names or not chosen:
        print(*(f"{row.name:<24} {row.what}" for row in ROWS.values()), sep="\n")
        raise typer.Exit(0 if names else 2)
    if threads is not None:
        torch.set_num_threads(threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    path = output or ROOT / "results" / "benchmarks" / slug()
    failed = []
    with tempfile.TemporaryDirectory(prefix="lm-eval-cna-bench-") as scratch:
        bench = Workbench(Path(scratch), seed=seed, asked_rounds=rounds)
        for row in chosen:
            began = time.perf_counter()
            bench.rounds = rounds or row.rounds
            try:
                with redirect_stderr(io.StringIO()):  # progress bars
                    outcome = row.run(bench)
            except Exception:  # one broken row shall not cost the figures of the others
                traceback.print_exc()
                failed.append(row.name)
                continue
            found = entry(row, outcome, threads=torch.get_num_threads(), seed=seed, command=command)
            if outcome.skipped:
                print(f"{row.name:<24} skipped: {outcome.skipped}", flush=True)
            else:
                low, high = found["range"]
                figure = f"{outcome.value:.3g} {row.unit} ({low:.3g} to {high:.3g}, {found['rounds']} rounds)"
                took = f"{time.perf_counter() - began:.0f} s"
                print(f"{row.name:<24} {figure}; target {row.target}: {found['verdict']}; took {took}", flush=True)
            if not dry:
                write(path, [found])
    if not dry:
        print(f"written: {path}.json and .md")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
