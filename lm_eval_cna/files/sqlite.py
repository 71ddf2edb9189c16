"""Open SQLite files of unknown origin safely.

Views and triggers are programs that run when a table is read or written, and pages that point at each other can make a
small file expand without end. So this module first checks that the file holds only our tables, with pages in order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

#: Size of the largest value that is read, in bytes.
_LONGEST = 64 * 2**20


def open_database(
    path: Path, tables: Mapping[str, Collection[Sequence[str]]], *, timeout: float, autocommit: bool = False
) -> sqlite3.Connection:
    """Open a database, or create an empty one.

    Args:
        path: the file.
        tables: name of a table -> the lists of columns that it may have, one list for each version of the format.
        timeout: seconds to wait for a lock.
        autocommit: open no transactions.

    Raises:
        sqlite3.DatabaseError: the file is not a database, is damaged, or holds anything but these tables.
        OSError: the path is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    database = sqlite3.connect(path, timeout=timeout, isolation_level=None if autocommit else "DEFERRED")
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        # Damaged text is found by its row's checksum; it must not fail the whole query.
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        database.execute("PRAGMA trusted_schema = OFF")
        for kind, name, page in database.execute("SELECT type, name, rootpage FROM sqlite_master").fetchall():
            if kind != "index" or not str(name).startswith("sqlite_autoindex_"):  # SQLite's own index of a primary key
                _check(database, kind, name, page, tables)
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(f"its pages are not in order: {said}")
    except UnicodeDecodeError as error:  # SQLite quotes the file in its message
        database.close()
        raise sqlite3.DatabaseError(f"its schema is not text: {error}") from error
    except BaseException:
        database.close()
        raise
    return database


def _check(
    database: sqlite3.Connection, kind: str, name: str, page: int, tables: Mapping[str, Collection[Sequence[str]]]
) -> None:
    """Refuse anything but a plain table of ours."""
    found = database.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
    columns = tuple(column for column, _ in found)
    if kind != "table" or not page or any(hidden for _, hidden in found):
        raise sqlite3.DatabaseError(f"it holds a {kind} {name!r:.80} that is not a plain table")
    if columns not in {tuple(known) for known in tables.get(name, ())}:
        raise sqlite3.DatabaseError(f"it holds a table {name!r:.80} with the columns {', '.join(columns)!r:.200}")
