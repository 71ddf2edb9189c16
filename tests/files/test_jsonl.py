"""JSON Lines: numbered lines, whole or an error that names one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_cna.files.jsonl import jsonl_text, read_jsonl


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \nnull\n"\xe2\x80\xa8"')
    assert read_jsonl(path) == [(1, {"a": 1}), (4, None), (5, "\u2028")]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    documents = [{"prompt": "ä\n\u2028"}, [1.5, None]]
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl_text(documents), encoding="utf-8", newline="")
    assert path.read_bytes().startswith('{"prompt": "ä'.encode())
    assert [document for _, document in read_jsonl(path)] == documents


def test_errors_name_the_line_and_sizes_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in (b'{"a": ', b'"\xff"', b"[" * 100_000, b"9" * 1_000):
        path.write_bytes(b"1\n\n" + line)
        with pytest.raises(ValueError, match=r"^line 3 is not JSON: "):
            read_jsonl(path)
    with pytest.raises(OSError, match="too large"):
        read_jsonl(path, limit=10)
