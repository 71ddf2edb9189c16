"""The response store: batches are there whole or not at all, and a damaged answer is never handed out."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lm_eval_cna.errors import RunError
from lm_eval_cna.results.responses import STORE_NAME, Response, ResponseStore, request_key

TEXT = Response("I refuse.\n\n\x00 ümlaut", tokens=4, near_ties=1)
PAIR, NUMBER = Response((float("-inf"), True)), Response(1e-320)


def test_what_is_written_is_read_back_as_lm_eval_takes_it(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        store.put({("a", "1"): TEXT, ("a", "2"): PAIR, ("b", "1"): NUMBER})
    with ResponseStore(tmp_path) as store:
        assert store.read("a") == {"1": TEXT, "2": PAIR} and store.read("b") == {"1": NUMBER}
        assert store.known("a") == {"1", "2"} and store.known("c") == set()


def test_a_later_answer_replaces_an_earlier_one(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        store.put({("a", "1"): TEXT})
        store.put({("a", "1"): PAIR})
        assert store.read("a") == {"1": PAIR}


def test_a_batch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        store.put({("a", "0"): TEXT})
        with pytest.raises(TypeError):
            store.put({("a", "1"): TEXT, ("a", "2"): Response({1, 2})})
        assert store.known("a") == {"0"}


def test_a_full_disk_is_one_line_and_the_store_stays_readable(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store:
        store.put({("a", "1"): TEXT})
        store._database.execute("PRAGMA max_page_count = 8")
        with pytest.raises(RunError, match=r"full; make room or give access, and run the same command again"):
            store.put({("a", str(n)): Response("word " * 1000, tokens=1) for n in range(2, 100)})
        assert store.read("a") == {"1": TEXT}
    with ResponseStore(tmp_path) as store:
        assert store.read("a") == {"1": TEXT}


@pytest.mark.parametrize(
    "column",
    [
        *("value = '\"other\"'", "tokens = 9", "near_ties = 9", "request = 'x'"),
        *("value = x'ff'", "value = CAST(x'22ff22' AS TEXT)", "tokens = 'ab'"),
    ],
)
def test_a_changed_row_counts_as_not_there(tmp_path: Path, column: str) -> None:
    with ResponseStore(tmp_path) as store:
        store.put({("a", "1"): TEXT, ("a", "2"): PAIR})
    with closing(sqlite3.connect(tmp_path / STORE_NAME)) as database, database:
        database.execute(f"UPDATE responses SET {column} WHERE request = '1'")
    with ResponseStore(tmp_path) as store:
        assert store.read("a") == {"2": PAIR} and store.known("a") == {"2"}


@pytest.mark.parametrize(
    "content", [b"not a database at all, whatever its name says" * 40, b"SQLite format 3\x00" + b"\xff" * 4096]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STORE_NAME).write_bytes(content)
    with (
        pytest.raises(RunError, match=r"responses\.sqlite: .*; delete it and run the sweep again"),
        ResponseStore(tmp_path),
    ):
        pass


def test_a_store_of_another_schema_is_refused(tmp_path: Path) -> None:
    with ResponseStore(tmp_path) as store, store._database:
        store._database.execute("UPDATE about SET schema = 'lm-eval-cna/responses/9'")
    with pytest.raises(RunError, match="another schema; got 'lm-eval-cna/responses/9'"):
        ResponseStore(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot use the response store"):
        ResponseStore(tmp_path / "none")


def test_keys_tell_requests_apart() -> None:
    options = {"until": [], "do_sample": False}
    keys = {
        request_key("generate_until", ("hello", options)),
        request_key("generate_until", ("hello ", options)),
        request_key("generate_until", ("hello", {**options, "max_gen_toks": 3})),
        request_key("generate_until", ("hello", options), 1),
        request_key("loglikelihood", ("hello", "a")),
        request_key("loglikelihood", ("hello", " a")),
        request_key("loglikelihood", ("helloa", "")),
    }
    assert len(keys) == 7
    assert request_key("g", ("a", {"x": 1, "y": 2})) == request_key("g", ("a", {"y": 2, "x": 1}))
