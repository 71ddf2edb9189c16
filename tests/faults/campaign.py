"""Rounds of faults, and the table of what they came to."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.bench import COMMANDS, STAGES, Bench
from tests.faults.kinds import KINDS, Outcome, Round

VERDICTS = ("survived", "lost", "wrong", "skipped")


class Done(NamedTuple):
    """A round that is over."""

    kind: str
    command: str
    outcome: Outcome


def run(
    times: int,
    *,
    seed: int,
    pairs: Collection[tuple[str, str]],
    tell: Callable[[str], None] = lambda line: None,
    seconds: float = float("inf"),
) -> list[Done]:
    """Try faults on commands, each pair `times` times, in an order drawn from the seed.

    Args:
        times: rounds of each pair.
        seed: of the order and of every round.
        pairs: kind of fault and command, see `pairs_of`.
        tell: called with a line for each round.
        seconds: begin no round after so long.
    """
    order = random.Random(seed)
    todo = [pair for _ in range(times) for pair in order.sample(list(pairs), len(pairs))]
    done: list[Done] = []
    with tempfile.TemporaryDirectory() as scratch, Bench(Path(scratch)) as bench:
        tell("undisturbed: " + ", ".join(f"{command} {took:.1f} s" for command, took in bench.seconds.items()))
        started = time.monotonic()
        for number, (kind, command) in enumerate(todo):
            if time.monotonic() - started > seconds:
                break
            folder = bench.copy(STAGES[command], f"round{number}")
            draw = random.Random(f"{seed} {number} {kind} {command}")
            outcome = KINDS[kind][0](Round(bench, command, folder, draw))
            shutil.rmtree(folder, ignore_errors=True)
            done.append(Done(kind, command, outcome))
            tell(f"{number + 1:4} {kind:13} {command:8} {outcome.verdict} {outcome.why}")
    return done


def pairs_of(kinds: Collection[str] = tuple(KINDS), *, short: bool = False) -> list[tuple[str, str]]:
    """Every one of these kinds with every command that it is for; if short with one, from kind to kind another."""
    pairs = []
    for number, kind in enumerate(kinds):
        commands = KINDS[kind][1]
        pairs += [(kind, command) for command in ([commands[(number + 1) % len(commands)]] if short else commands)]
    return pairs


def table(done: list[Done]) -> str:
    """Markdown: a row a kind, a column a command, survived of tried, with what was lost or wrong."""
    lines = [f"| fault | {' | '.join(COMMANDS)} | lost | wrong |", "|---" * (len(COMMANDS) + 3) + "|"]
    for kind in dict.fromkeys([*(entry.kind for entry in done), "all"]):
        rows = [entry for entry in done if kind in (entry.kind, "all")]
        parts = [_part([entry for entry in rows if entry.command == command]) for command in COMMANDS]
        counts = Counter(entry.outcome.verdict for entry in rows)
        lines.append(f"| {kind} | {' | '.join(parts)} | {counts['lost']} | {counts['wrong']} |")
    return "\n".join(lines)


def record(done: list[Done], *, seed: int) -> dict[str, Any]:
    """The campaign as plain data: counts by kind and command, and every round that was lost or wrong."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for entry in done:
        by_command = counts.setdefault(entry.kind, {}).setdefault(entry.command, dict.fromkeys(VERDICTS, 0))
        by_command[entry.outcome.verdict] += 1
    bad = [entry for entry in done if entry.outcome.verdict in ("lost", "wrong")]
    return {
        "seed": seed,
        "rounds": len(done),
        **{verdict: sum(entry.outcome.verdict == verdict for entry in done) for verdict in VERDICTS},
        "by_kind": counts,
        "bad": [f"{entry.kind}, {entry.command}: {entry.outcome.verdict}: {entry.outcome.why}" for entry in bad],
    }


def _part(rows: list[Done]) -> str:
    tried = [entry for entry in rows if entry.outcome.verdict != "skipped"]
    return f"{sum(entry.outcome.verdict == 'survived' for entry in tried)} of {len(tried)}" if tried else "-"
