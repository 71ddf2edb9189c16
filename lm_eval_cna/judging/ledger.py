"""The ledger: a SQLite file with every reply of a judge, so that no question is asked twice.

Each reply is written when it arrives, in its own transaction. Several processes may share the file: the first reply to
a question counts for all. A row holds a hash of prompt and response, not their text. Verdicts are parsed from the reply
each time; the stored one is for people who look. A row with a wrong checksum is ignored.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from lm_eval_cna.errors import CacheError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.files.sqlite import open_database
from lm_eval_cna.scoring.strongreject import JudgeVerdict

_APPLICATION = 0x434E414A  # "CNAJ"
_VERSION = 2  # 1 had no checksums; its rows are read as they are
_CREATE = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    judge TEXT NOT NULL,
    rubric TEXT NOT NULL,
    reply TEXT NOT NULL,
    verdict TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    answered TEXT NOT NULL,
    checksum TEXT
) WITHOUT ROWID
"""
_COLUMNS = ("key", "judge", "rubric", "reply", "verdict", "attempts", "answered", "checksum")
_AT_ONCE = 500


def ledger_key(judge: str, rubric: str, prompt: str, response: str) -> str:
    """The key of an answer: a hash of the judge's fingerprint, the rubric's version, prompt and response."""
    return hashlib.sha256(json.dumps([judge, rubric, prompt, response]).encode()).hexdigest()


class Ledger:
    """A judge's answers in a file. Use it as a context manager, in one thread.

    Args:
        path: the SQLite file; it and its folder are made where they do not exist.

    Raises:
        CacheError: the file is something else, of a later version, damaged, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = open_database(path, {"answers": (_COLUMNS[:-1], _COLUMNS)}, timeout=60, autocommit=True)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def replies(self, keys: Iterable[str]) -> dict[str, str]:
        """The raw replies that the ledger holds for these keys, damaged ones left out.

        Raises:
            CacheError: the file cannot be read.
        """
        wanted = list(keys)
        found: dict[str, str] = {}
        with self._explained():
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = self._database.execute(f"SELECT key, reply, checksum FROM answers WHERE key IN ({marks})", part)
                found |= {
                    key: reply
                    for key, reply, checksum in rows
                    if isinstance(reply, str) and checksum in (None, _sum(key, reply))
                }
        return found

    def add(self, key: str, *, judge: str, rubric: str, reply: str, verdict: JudgeVerdict, attempts: int) -> str:
        """Store a reply, unless another process was first; on return it is on file. A damaged row is replaced.

        Returns:
            The reply that is on file: this one, or the other process's.

        Raises:
            CacheError: the file cannot be written.
        """
        row = (
            key,
            judge,
            rubric,
            reply.encode("utf-8", "replace").decode(),  # half a surrogate pair cannot be stored
            json.dumps({"score": verdict.score, **verdict.judgements, "reason": verdict.reason}),
            attempts,
            datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                known = self.replies([key])
                if not known:
                    marks = ",".join("?" * (len(row) + 1))
                    self._database.execute(
                        f"INSERT OR REPLACE INTO answers VALUES ({marks})", (*row, _sum(key, row[3]))
                    )
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        return known.get(key, row[3])

    def __len__(self) -> int:
        """Number of answers in the ledger."""
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _prepare(self) -> None:
        # The tables first: another process that is making them right now makes all three in one transaction.
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = self._database.execute("PRAGMA application_id").fetchone()[0]
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if (tables and application != _APPLICATION) or version > _VERSION:
            raise CacheError(
                f"{self.path} is not a ledger of this version", do="name another file, or a new one, as the ledger"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        # NORMAL keeps every transaction when the process dies; a power cut may take the last ones, never the file.
        self._database.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute(_CREATE)
            self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
            self._database.execute("COMMIT")
        elif version < _VERSION:
            self._upgrade()

    def _upgrade(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        if self._database.execute("PRAGMA user_version").fetchone()[0] < _VERSION:  # nobody else was first
            self._database.execute("ALTER TABLE answers ADD COLUMN checksum TEXT")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        self._database.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"the judge's ledger {self.path} cannot be used: {error}", do="name another file as the ledger"
            ) from error


def _sum(key: str, reply: object) -> str:
    return json_sha256([key, reply])[:16]
