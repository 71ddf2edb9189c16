"""Refuses a response cache of lm-eval that belongs to another model or multiplier.

The keys of `--use_cache` hold the request and nothing of the model (upstream #4063, #2715), so one cache
shared by two multipliers would hand one's responses to the other. The guard writes a stamp into a table of its own
beside sqlitedict's and refuses a cache with another stamp, or a filled one without. It cannot stop a later stock
`hf` run from reading the cache.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

from lm_eval_cna.errors import CacheError

_TABLE = "lm_eval_cna_stamp"


def guard_cache(path: str, fingerprint: str, description: str) -> None:
    """Stamp the cache at `path`, or check its stamp.

    Args:
        path: the SQLite file that lm-eval's CachingLM has opened.
        fingerprint: identity of model and steering.
        description: the same for people, shown when another setting meets this cache.

    Raises:
        CacheError: the cache belongs to another model or setting, its origin is unknown, or it is damaged.
    """
    try:
        _stamp(path, fingerprint, description)
    except sqlite3.Error as error:
        raise CacheError(f"the response cache {path} cannot be used: {error}", do="name a new one") from error


def _stamp(path: str, fingerprint: str, description: str) -> None:
    with closing(sqlite3.connect(path, timeout=30)) as database, database:
        database.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (fingerprint TEXT PRIMARY KEY, description TEXT)")
        stamps = database.execute(f"SELECT fingerprint, description FROM {_TABLE}").fetchall()
        if any(stamp == fingerprint for stamp, _ in stamps):
            return
        if stamps:
            raise CacheError(
                f"the response cache {path} belongs to {stamps[0][1]}",
                got=description,
                do="give every model and multiplier a --use_cache of its own",
            )
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "unnamed" in tables and database.execute("SELECT 1 FROM unnamed LIMIT 1").fetchone():
            raise CacheError(
                f"the response cache {path} holds responses of unknown origin",
                do="give cna-hf an empty or new --use_cache",
            )
        database.execute(f"INSERT INTO {_TABLE} VALUES (?, ?)", (fingerprint, description))
