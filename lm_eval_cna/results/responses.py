"""The response store: a SQLite file with every response of a sweep, written when its batch is done. Without torch.

A response's key holds two hashes: the context (weights, precision, steering, tokenizing, generation settings;
`Steered.fingerprint_of`) and the request (kind, rendered prompt, arguments; `request_key`). So only the same request to
the same model shares an answer. A row with a wrong checksum is ignored.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_cna.errors import RunError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.files.json_reader import load_json
from lm_eval_cna.files.sqlite import open_database

STORE_NAME = "responses.sqlite"
_SCHEMA = "lm-eval-cna/responses/1"
_TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    context TEXT NOT NULL, request TEXT NOT NULL, value TEXT NOT NULL,
    tokens INTEGER NOT NULL, near_ties INTEGER NOT NULL, checksum TEXT NOT NULL,
    PRIMARY KEY (context, request)
) WITHOUT ROWID
"""
_COLUMNS: dict[str, list[tuple[str, ...]]] = {
    "responses": [("context", "request", "value", "tokens", "near_ties", "checksum")],
    "about": [("schema",)],
}


@dataclass(frozen=True)
class Response:
    """A model's answer to one request."""

    value: Any
    """A text, a log-likelihood, or a pair of log-likelihood and greedy flag, as in lm-eval."""
    tokens: int = 0
    """Number of generated tokens; 0 for log-likelihoods."""
    near_ties: int = 0
    """Generated tokens whose runner-up was so close that another batch could have chosen it."""


def request_key(kind: str, arguments: tuple[Any, ...], repeat: int = 0) -> str:
    """Identity of a request: what the model is asked, whichever task or document asks it.

    Args:
        kind: lm-eval's request type.
        arguments: lm-eval's arguments of the request: rendered prompt and generation settings, or context and
            continuation.
        repeat: number of the repeat, where a task asks a request several times.
    """
    return json_sha256([kind, arguments, repeat])


class ResponseStore:
    """The responses of a run directory. A context manager.

    Args:
        folder: the run directory, which must exist.

    Raises:
        RunError: the store cannot be opened or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STORE_NAME
        with self._explained():
            self._database = open_database(self.path, _COLUMNS, timeout=30)
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                # The end of a batch is on the disk before the next begins, a power cut included.
                self._database.execute("PRAGMA synchronous = FULL")
                with self._database:
                    self._database.execute(_TABLE)
                    self._database.execute("CREATE TABLE IF NOT EXISTS about (schema TEXT NOT NULL)")
                    found = [schema for (schema,) in self._database.execute("SELECT schema FROM about")]
                    if not found:
                        self._database.execute("INSERT INTO about VALUES (?)", (_SCHEMA,))
                if found not in ([], [_SCHEMA]):
                    raise RunError(f"{self.path} is of another schema", got=found[0], allowed=_SCHEMA)
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._database.close()

    def put(self, responses: Mapping[tuple[str, str], Response]) -> None:
        """Write a batch in one transaction: {(context, request): response}.

        Raises:
            RunError: the disk is full or the store is damaged; nothing of the batch is there then.
        """
        rows = []
        for (context, request), response in responses.items():
            value = json.dumps(response.value)
            checksum = _checksum(context, request, value, response.tokens, response.near_ties)
            rows.append((context, request, value, response.tokens, response.near_ties, checksum))
        with self._explained(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?)", rows)

    def known(self, context: str) -> set[str]:
        """The requests with a sound response in this context; a damaged row is ignored."""
        return {request for request, _ in self._rows(context)}

    def read(self, context: str) -> dict[str, Response]:
        """All sound responses of a context, by request."""
        return dict(self._rows(context))

    def _rows(self, context: str) -> Iterator[tuple[str, Response]]:
        with self._explained():
            found: Iterable[Any] = self._database.execute(
                "SELECT request, value, tokens, near_ties, checksum FROM responses WHERE context = ?", (context,)
            ).fetchall()
        for request, value, tokens, near_ties, checksum in found:
            if checksum == _checksum(context, request, value, tokens, near_ties):
                with suppress(ValueError, TypeError, AttributeError):  # not a response, although the checksum fits
                    yield request, _response(value, tokens, near_ties)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            damaged = type(error) is sqlite3.DatabaseError or "no such" in str(error) or "has no column" in str(error)
            raise RunError(
                f"cannot use the response store {self.path}: {error}",
                do="delete it and run the sweep again; what has a results file is kept"
                if damaged
                else "make room or give access, and run the same command again: what is there is kept",
            ) from error


def _response(value: str, tokens: int, near_ties: int) -> Response:
    """A row as a response.

    Raises:
        ValueError, TypeError, AttributeError: it holds no response.
    """
    match load_json(value.encode()), tokens, near_ties:
        case [float() | int() as number, bool() as greedy], int(), int():
            return Response((number, greedy), tokens, near_ties)
        case str() | float() | int() as answer, int(), int():
            return Response(answer, tokens, near_ties)
    raise ValueError("no response")


def _checksum(*parts: Any) -> str:
    return json_sha256(parts)[:16]
