"""Databases from elsewhere: tables may be programs, pages may be anything; nothing of them runs."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lm_eval_cna.errors import CacheError, CNAError
from lm_eval_cna.judging.ledger import Ledger
from lm_eval_cna.models.cache_guard import guard_cache
from lm_eval_cna.results.responses import STORE_NAME, Response, ResponseStore, _checksum
from lm_eval_cna.scoring.strongreject import unscored

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
HOSTILE = {
    "an endless view": "ALTER TABLE {t} RENAME TO old; "
    f"CREATE VIEW {{t}} AS SELECT * FROM old, ({ENDLESS} SELECT x FROM n)",
    "a trigger that undoes": "CREATE TRIGGER t AFTER INSERT ON {t} BEGIN DELETE FROM {t}; END",
    "a generated column": "ALTER TABLE {t} ADD COLUMN more TEXT AS (printf('%.*c', 100000000, 'x'))",
    "another table": "CREATE TABLE more (a)",
    "other columns": "DROP TABLE {t}; CREATE TABLE {t} (a)",
    "a table that says it is a view": "PRAGMA writable_schema = 1; "
    "UPDATE sqlite_master SET type = 'view', rootpage = 0, "
    f"sql = 'CREATE VIEW {{t}} AS {ENDLESS} SELECT x AS {{c}} FROM n' WHERE name = '{{t}}'",
    "no schema that is one": "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'no'",
    "pages that are one page": "PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = 1",
}


def _store(path: Path) -> None:
    with ResponseStore(path.parent) as store:
        store.read("context")
        store.put({("context", "more"): Response("text")})


def _ledger(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.replies(["key"])
        len(ledger)
        ledger.add("more", judge="j", rubric="r", reply="text", verdict=unscored("why"), attempts=1)


KINDS: dict[str, tuple[str, str, str, Callable[[Path], None]]] = {
    "store": (STORE_NAME, "responses", "context", _store),
    "ledger": ("ledger.sqlite", "answers", "key", _ledger),
}


def _change(path: Path, said: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in [said] if "BEGIN" in said else said.split("; "):
            database.execute(statement)


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_table_of_ours_is_refused_before_it_runs(kind: str, what: str, tmp_path: Path) -> None:
    name, table, column, use = KINDS[kind]
    path = tmp_path / name
    use(path)
    _change(path, HOSTILE[what].format(t=table, c=column))
    before, started = path.read_bytes(), time.process_time()
    with pytest.raises(CNAError) as error:
        use(path)
    assert time.process_time() - started < 3 and "\n" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_that_is_no_text_is_one_line(kind: str, tmp_path: Path) -> None:
    """SQLite quotes it in its message, which Python then cannot read."""
    name, _, _, use = KINDS[kind]
    path = tmp_path / name
    use(path)
    _change(path, "PRAGMA journal_mode = DELETE")
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CREATE TA\xff\xff\xff"))
    with pytest.raises(CNAError, match="schema"):
        use(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_takes_all_memory_is_not_read(kind: str, tmp_path: Path) -> None:
    """A chain of pages that leads back to itself is as long as the row says."""
    name, table, column, use = KINDS[kind]
    path = tmp_path / name
    use(path)
    _change(path, f"UPDATE {table} SET {column} = {column} || hex(zeroblob(4000000))")
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    for page in range(2, len(data) // size):  # every page of the chain becomes its own successor
        start = page * size
        if data[start : start + 4] == (page + 2).to_bytes(4, "big"):
            data[start : start + 4] = (page + 1).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(CNAError, match="not in order"):
        use(path)


@pytest.mark.parametrize("value", ["no JSON", "[" * 5_000, "null", '["a", true]'])
def test_what_is_no_response_counts_as_not_there_whatever_its_checksum(value: str, tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        store.put({("context", "good"): Response((-1.5, True))})
    with closing(sqlite3.connect(tmp_path / STORE_NAME)) as database, database:
        row = ("context", "bad", value, 1, 0)
        database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", (*row, _checksum(*row)))
        row = ("context", "blob", json.dumps("text").encode(), 1, 0)
        database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", (*row, _checksum(*row)))
    with ResponseStore(tmp_path) as store:
        assert store.read("context") == {"good": Response((-1.5, True))} and store.known("context") == {"good"}


def test_a_reply_that_is_no_text_counts_as_not_there(tmp_path: Path) -> None:
    _ledger(tmp_path / "ledger.sqlite")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database, database:
        database.execute("UPDATE answers SET reply = x'ff', checksum = NULL")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.replies(["more"]) == {}


@pytest.mark.parametrize("data", [b"no database " * 100, b"SQLite format 3\x00" + bytes(200)])
def test_a_response_cache_that_is_no_database_is_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(data)
    with pytest.raises(CacheError, match=r"cache\.db cannot be used"):
        guard_cache(str(tmp_path / "cache.db"), "f", "a model")
