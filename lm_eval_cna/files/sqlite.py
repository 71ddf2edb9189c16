"""SQLite files that may come from elsewhere: opened only as what they should be. Standard library only.

A database can hold more than rows: views and triggers under the names of tables are programs, which run when the table
is read or written, and pages that point at each other make a small file mean a large one. So before anything is read
or written, a file must have our tables and nothing else, and its pages must be in order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

#: Bytes of the longest value that is read.
_LONGEST = 64 * 2**20


def open_database(
    path: Path, tables: Mapping[str, Collection[Sequence[str]]], *, timeout: float, autocommit: bool = False
) -> sqlite3.Connection:
    """Open a database, or make an empty one.

    Args:
        path: the file.
        tables: name -> the columns that it may have; of several versions, of each.
        timeout: seconds to wait for another process.
        autocommit: leave transactions to the caller.

    Raises:
        sqlite3.DatabaseError: it is no database, damaged, or holds something else than these tables.
        OSError: it is no regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    database = sqlite3.connect(path, timeout=timeout, isolation_level=None if autocommit else "DEFERRED")
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        # A damaged text is for its row's checksum to tell, and no error of the whole query.
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        database.execute("PRAGMA trusted_schema = OFF")
        for kind, name, page in database.execute("SELECT type, name, rootpage FROM sqlite_master").fetchall():
            if kind != "index" or not str(name).startswith("sqlite_autoindex_"):  # that of a primary key is nobody's
                _check(database, kind, name, page, tables)
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(f"its pages are not in order: {said}")
    except UnicodeDecodeError as error:  # SQLite's message, which has words of the file in it
        database.close()
        raise sqlite3.DatabaseError(f"its schema is no text: {error}") from error
    except BaseException:
        database.close()
        raise
    return database


def _check(
    database: sqlite3.Connection, kind: str, name: str, page: int, tables: Mapping[str, Collection[Sequence[str]]]
) -> None:
    """Refuse what is no plain table of ours."""
    found = database.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
    columns = tuple(column for column, _ in found)
    if kind != "table" or not page or any(hidden for _, hidden in found):
        raise sqlite3.DatabaseError(f"it holds a {kind} {name!r:.80} that is no plain table")
    if columns not in {tuple(known) for known in tables.get(name, ())}:
        raise sqlite3.DatabaseError(f"it holds a table {name!r:.80} with the columns {', '.join(columns)!r:.200}")
