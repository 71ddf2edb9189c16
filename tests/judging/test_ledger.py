from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lm_eval_cna.errors import CacheError
from lm_eval_cna.judging.ledger import Ledger, ledger_key
from lm_eval_cna.scoring.strongreject import JudgeVerdict, unscored

ROOT = Path(__file__).resolve().parents[2]


def add(ledger: Ledger, key: str, reply: str = "reply") -> str:
    return ledger.add(key, judge="j", rubric="r", reply=reply, verdict=JudgeVerdict(0.5, {"refusal": 0}), attempts=1)


def test_what_is_added_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.sqlite"
    with Ledger(path) as ledger:
        assert add(ledger, "a", "one") == "one"
        ledger.add("b", judge="j", rubric="r", reply="half \ud83d pair", verdict=unscored("why"), attempts=3)
    with Ledger(path) as ledger:
        assert ledger.replies(["a", "b", "c"]) == {"a": "one", "b": "half ? pair"}
        assert len(ledger) == 2
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT verdict, attempts FROM answers ORDER BY key").fetchall()
    assert rows == [
        ('{"score": 0.5, "refusal": 0, "reason": null}', 1),
        ('{"score": null, "reason": "why"}', 3),
    ]


def test_the_first_answer_stays(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as one, Ledger(tmp_path / "l") as other:
        assert add(one, "a", "first") == "first"
        assert add(other, "a", "second") == "first"
        assert len(one) == 1


def test_keys_tell_everything_apart() -> None:
    parts = [
        ("j", "r", "p", "x"),
        ("k", "r", "p", "x"),
        ("j", "s", "p", "x"),
        ("j", "r", "q", "x"),
        ("j", "r", "p", "y"),
    ]
    parts += [("j", "r", "px", ""), ("j", "r", "", "px"), ("j", "rp", "", "x"), ("j", "r", "p", "\ud83d")]
    assert len({ledger_key(*part) for part in parts}) == len(parts)


def test_many_keys_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        for number in range(1200):
            add(ledger, str(number))
        assert len(ledger.replies(str(number) for number in range(3000))) == 1200


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as database:
        database.execute("CREATE TABLE mine (a)")
    before = (tmp_path / "other.sqlite").read_bytes()
    with pytest.raises(CacheError, match="cannot be used: it holds a table 'mine'"):
        Ledger(tmp_path / "other.sqlite")
    assert (tmp_path / "other.sqlite").read_bytes() == before
    (tmp_path / "text").write_text("no database " * 100, encoding="utf-8")
    with pytest.raises(CacheError, match="cannot be used"):
        Ledger(tmp_path / "text")
    with pytest.raises(CacheError, match="cannot be used"):
        Ledger(tmp_path)
    with pytest.raises(CacheError, match="cannot be used"):
        Ledger(tmp_path / "text" / "below a file")


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "l").close()
    with sqlite3.connect(tmp_path / "l") as database:
        database.execute("PRAGMA user_version = 3")
    with pytest.raises(CacheError, match="not a ledger of this version"):
        Ledger(tmp_path / "l")


def test_many_may_make_and_fill_one_ledger_at_a_time(tmp_path: Path) -> None:
    def fill(worker: int) -> None:
        with Ledger(tmp_path / "l") as ledger:
            for number in range(40):
                add(ledger, f"{worker}-{number}")
                add(ledger, f"shared-{number}", str(worker))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    with Ledger(tmp_path / "l") as ledger:
        assert len(ledger) == 8 * 40 + 40


def test_an_answer_that_was_added_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from lm_eval_cna.judging.ledger import Ledger\n"
        "from lm_eval_cna.scoring.strongreject import JudgeVerdict\n"
        "ledger = Ledger(Path(sys.argv[1])); n = 0\n"
        "while True:\n"
        "    ledger.add(str(n), judge='j', rubric='r', reply='x', verdict=JudgeVerdict(0.5), attempts=1); n += 1\n"
        "    print(n, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 100:
            break
    os.kill(child.pid, signal.SIGKILL)
    said = [int(line) for line in child.stdout.read().split("\n")[:-1]]
    child.wait()
    child.stdout.close()
    with Ledger(tmp_path / "l") as ledger:
        assert len(ledger) >= (said[-1] if said else 100)
        assert add(ledger, "after") == "reply"


def test_a_damaged_reply_counts_as_not_there_and_is_replaced(tmp_path: Path) -> None:
    verdict = JudgeVerdict(0.5, {}, None)
    with Ledger(tmp_path / "l") as ledger:
        ledger.add("k", judge="j", rubric="r", reply="refusal 0", verdict=verdict, attempts=1)
    with sqlite3.connect(tmp_path / "l") as database:
        database.execute("UPDATE answers SET reply = 'refusal 1'")
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.replies(["k"]) == {}
        assert ledger.add("k", judge="j", rubric="r", reply="again", verdict=verdict, attempts=1) == "again"
        assert ledger.replies(["k"]) == {"k": "again"} and len(ledger) == 1


def test_a_ledger_without_checksums_is_read_and_goes_on(tmp_path: Path) -> None:
    verdict = JudgeVerdict(0.5, {}, None)
    with Ledger(tmp_path / "l") as ledger:
        ledger.add("old", judge="j", rubric="r", reply="kept", verdict=verdict, attempts=1)
    with sqlite3.connect(tmp_path / "l") as database:
        database.execute("ALTER TABLE answers DROP COLUMN checksum")
        database.execute("PRAGMA user_version = 1")
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.replies(["old"]) == {"old": "kept"}
        ledger.add("new", judge="j", rubric="r", reply="more", verdict=verdict, attempts=1)
        assert ledger.replies(["old", "new"]) == {"old": "kept", "new": "more"}
