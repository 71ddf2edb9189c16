"""The faults, and what each round comes to: survived, lost or wrong.

Lost: what had been finished was computed or asked again or is gone, or the command cannot go on, or it ends in a
traceback or without a word. Wrong: numbers that differ from the undisturbed run's.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch

import lm_eval_cna.judging.ledger
from lm_eval_cna.sweep import prepare
from tests.faults.bench import LEDGER, STAGES, Bench, Ended, answers, sound_rows, wrap_forward
from tests.helpers.judge_server import obliging
from tests.helpers.scores import alike

Verdict = Literal["survived", "lost", "wrong", "skipped"]


class Outcome(NamedTuple):
    """What a round came to, and why."""

    verdict: Verdict
    why: str = ""


class Round(NamedTuple):
    """One round: a command, the folder that it works in, and chance."""

    bench: Bench
    command: str
    folder: Path
    draw: random.Random


Fault = Callable[[Round], Outcome]
EVERY = tuple(STAGES)
_MS_RDONLY, _MS_REMOUNT = 1, 32


def stopped(a: Round, what: signal.Signals, statuses: tuple[int, ...]) -> Outcome:
    """A signal at a random moment."""
    child = a.bench.start(a.command, a.folder)
    child.send(what, after=a.draw.uniform(0.05, 1.05) * a.bench.seconds[a.command])
    ended = child.end()
    return _again(a) if ended.status in statuses else Outcome("lost", f"{what.name}: {ended.reason}")


def full_disk(a: Round) -> Outcome:
    """No space left: a small tmpfs, or else a limit on the size of a file."""
    room = a.draw.randrange(8, 240) * 1024
    with _disk(a.folder) as mounted:
        used = sum(path.stat().st_blocks * 512 for path in a.folder.rglob("*"))
        if mounted and a.draw.random() < 0.7:
            _mount(a.folder, f"size={used + room}", _MS_REMOUNT)
            ended = a.bench.run(a.command, a.folder)
            _mount(a.folder, "size=64m", _MS_REMOUNT)
        else:
            limit = a.draw.randrange(1, 40) * 1024
            ended = a.bench.run(a.command, a.folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        return _again(a, first=ended)


def read_only(a: Round) -> Outcome:
    """A folder that cannot be written."""
    with _disk(a.folder) as mounted:
        if not mounted:
            return Outcome("skipped", "needs root and mount")
        _mount(a.folder, "", _MS_REMOUNT | _MS_RDONLY)
        ended = a.bench.run(a.command, a.folder)
        _mount(a.folder, "size=64m", _MS_REMOUNT)
        return _again(a) if ended.refused else Outcome("lost", f"read-only: {ended.reason}")


def truncated(data: bytes, draw: random.Random) -> bytes:
    """The beginning."""
    return data[: draw.randrange(len(data))]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One to three flipped bits."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def another_digit(data: bytes, draw: random.Random) -> bytes:
    """A digit that has become another one."""
    places = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return data[:-1] + bytes([data[-1] ^ 1])
    found, place = bytearray(data), draw.choice(places)
    found[place] = 48 + (found[place] - 48 + draw.randint(1, 9)) % 10
    return bytes(found)


def clock(a: Round) -> Outcome:
    """A clock that runs backwards, on files from the future."""
    for path in a.folder.rglob("*"):
        os.utime(path, (time.time() + 86400,) * 2)
    ended = a.bench.run(a.command, a.folder, _backwards)
    return _same(a, ended) if ended.status == 0 else Outcome("lost", ended.reason)


def two_writers(a: Round) -> Outcome:
    """The same command twice at a time."""
    first = a.bench.start(a.command, a.folder)
    time.sleep(a.draw.uniform(0, 0.8) * a.bench.seconds[a.command])
    both = [a.bench.run(a.command, a.folder), first.end()]
    for ended in both:
        if ended.status != 0 and not (ended.refused and "another process" in ended.error):
            return Outcome("lost", f"two writers: {ended.reason}")
    whole = [ended for ended in both if ended.status == 0]
    return _same(a, whole[0]) if whole else Outcome("lost", "neither writer went on")


def raises(a: Round) -> Outcome:
    """A model, or the judge's server, that fails in the middle."""
    if a.command == "judge":
        after = a.draw.randrange(a.bench.questions)
        a.bench.server.behave = lambda question, n: 400 if n % a.bench.questions >= after else obliging(question, n)
        try:
            ended = a.bench.run(a.command, a.folder)
        finally:
            a.bench.server.behave = obliging
        return _again(a, first=ended)
    fatal, passes = a.draw.randrange(a.bench.passes[a.command]), itertools.count()

    def look(_rows: int) -> None:
        if next(passes) == fatal:
            raise RuntimeError("the model fails")

    ended = a.bench.run(a.command, a.folder, lambda: wrap_forward(look))
    if ended.status == 0 or "the model fails" not in ended.error:
        return Outcome("lost", f"the model's failure is not told: {ended.reason}")
    return _again(a)


def out_of_memory(a: Round) -> Outcome:
    """An accelerator with room for few rows: smaller batches, the same results."""
    most = a.draw.randint(1, 3) if a.command == "discover" else a.draw.randint(3, 5)  # the self-check needs three rows

    def look(rows: int) -> None:
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory: a fault")

    ended = a.bench.run(a.command, a.folder, lambda: wrap_forward(look))
    if ended.status != 0:
        return Outcome("lost", f"{most} rows fit: {ended.reason}")
    wanted = a.bench.expected[STAGES[a.command], a.command]
    near = alike(a.bench.numbers(a.command, a.folder, ended), wanted)  # batches of another size round otherwise
    return Outcome("survived") if near else Outcome("wrong", f"{most} rows fit: the numbers differ")


def damaged(a: Round, damage: Callable[[bytes, random.Random], bytes]) -> Outcome:
    """Damage a file of a finished run; a command notices and names it, or the numbers are right all the same."""
    stage = "swept" if a.command == "judge" and a.draw.random() < 0.5 else "judged"
    shutil.rmtree(a.folder)
    a.bench.copy(stage, a.folder.name)
    files = sorted(path for path in a.folder.rglob("*") if path.suffix in (".json", ".safetensors", ".sqlite"))
    files = [path for path in files if path.parent != a.folder or path.name == LEDGER]
    if a.command == "sweep":  # which reads nothing of what a judge said; `judge` and `report` have rounds of their own
        files = [path for path in files if path.parent.name != "judged" and path.name != LEDGER]
    # The many results files would have nearly every round.
    few = [path for path in files if "cells" not in path.parts]
    path = a.draw.choice(few if a.draw.random() < 0.75 else files)
    path.write_bytes(damage(path.read_bytes(), a.draw))
    said = f"{stage}: {path.relative_to(a.folder)}"
    ended = a.bench.run(a.command, a.folder)
    if ended.status == 0:
        return _same(a, ended, stage="judged" if a.command != "judge" else stage, said=said)
    if not ended.refused:
        return Outcome("lost", f"{said}: {ended.reason}")
    if path.name not in ended.error and str(path.parent.name) not in ended.error:
        return Outcome("lost", f"{said} is not named: {ended.reason}")
    return _repaired(a, path, said)


#: Kind -> the fault, and the commands that it is tried on.
KINDS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "kill -9": (partial(stopped, what=signal.SIGKILL, statuses=(0, -signal.SIGKILL)), EVERY),
    "SIGINT": (partial(stopped, what=signal.SIGINT, statuses=(0, 130)), EVERY),
    "full disk": (full_disk, EVERY),
    "read-only": (read_only, EVERY),
    "truncated": (partial(damaged, damage=truncated), EVERY[1:]),
    "bit flipped": (partial(damaged, damage=flipped), EVERY[1:]),
    "digit changed": (partial(damaged, damage=another_digit), EVERY[1:]),
    "clock back": (clock, EVERY),
    "two writers": (two_writers, EVERY),
    "raises": (raises, EVERY[:3]),
    "out of memory": (out_of_memory, EVERY[:2]),
}


def _again(a: Round, *, first: Ended | None = None) -> Outcome:
    """Run the command again, `first` having ended well or with a refusal: it must do what is left, and no more."""
    if first is not None and not (first.status == 0 or first.refused):
        return Outcome("lost", first.reason)
    rows, cells, known = sound_rows(a.folder / "run"), _cells(a.folder), answers(a.folder)
    asked = len(a.bench.server.asked)
    a.bench.written.write_text("")
    ended = a.bench.run(a.command, a.folder)
    written = {tuple(line.split()) for line in a.bench.written.read_text().splitlines()}
    if ended.status != 0:
        return Outcome("lost", f"again: {ended.reason}")
    if lost := rows & written:
        return Outcome("lost", f"{len(lost)} of {len(rows)} responses were computed again")
    if not rows <= sound_rows(a.folder / "run"):
        return Outcome("lost", "responses are gone")
    now = _cells(a.folder)
    if any(now.get(name) != when for name, when in cells.items()):
        return Outcome("lost", "results were evaluated again")
    if a.command == "judge" and known + len(a.bench.server.asked) - asked != a.bench.questions:
        return Outcome("lost", f"{known} answers known, {len(a.bench.server.asked) - asked} asked again")
    return _same(a, ended)


def _repaired(a: Round, path: Path, said: str) -> Outcome:
    """Do what the message says: delete the file and run again."""
    path.unlink()
    needed = {"sweep": ["sweep"], "judge": ["sweep", "judge"]}.get(a.command, ["sweep", "judge", a.command])
    for command in needed:
        ended = a.bench.run(command, a.folder)
        if ended.status != 0:
            return Outcome("lost", f"{said}: deleted, then {command}: {ended.reason}")
    if a.command in ("report", "check") and path.name == "manifest.json":
        return Outcome("survived", said)  # another date in it, and that is in the report
    return _same(a, ended, said=said, stage=None if a.command == "judge" else "judged")


def _same(a: Round, ended: Ended, *, stage: str | None = None, said: str = "") -> Outcome:
    found = a.bench.numbers(a.command, a.folder, ended)
    if found != a.bench.expected[stage or STAGES[a.command], a.command]:
        return Outcome("wrong", f"{said}: the numbers differ")
    return Outcome("survived", said)


def _cells(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("run/cells/*/*.json")}


def _backwards() -> None:
    started, ticks = time.time(), itertools.count()

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(started - 3600.0 * next(ticks), tz or UTC)

    time.time = lambda: started - 3600.0 * next(ticks)
    setattr(prepare, "datetime", Backwards)  # noqa: B010 - mypy knows the class
    setattr(lm_eval_cna.judging.ledger, "datetime", Backwards)  # noqa: B010


def _mount(folder: Path, options: str, flags: int = 0) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.mount(b"none", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options.encode())
    return done == 0


@contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """Put the folder's contents on a disk of its own, where this user may mount; whether that is so."""
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.copytree(folder, kept)
    mounted = _mount(folder, "size=64m")
    try:
        if mounted:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield mounted
    finally:
        if mounted:
            ctypes.CDLL(None).umount2(os.fsencode(folder), 2)
        with suppress(OSError):
            shutil.rmtree(kept)
