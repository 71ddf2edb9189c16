"""Good files made bad: a value of the document is replaced, left out, repeated, nested or moved; bytes change."""

from __future__ import annotations

import copy
import json
import math
import random
import sqlite3
import struct
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from lm_eval_cna.files.yaml_reader import load_yaml
from tests.files.test_sqlite import HOSTILE as DATABASES

#: Stand for what `json.dumps` cannot write; see `_written`.
_PLACEHOLDERS = {
    "@digits@": "9" * 5_000,
    "@some digits@": "9" * 400,
    "@deep list@": "[" * 20_000 + "]" * 20_000,
    "@quite deep@": '{"a":' * 150 + "1" + "}" * 150,
    "@tall@": '{"a":' * 90 + "1" + "}" * 90,
    "@open@": "[" * 5_000,
}
# fmt: off
_WORDS = (
    "", " ", "a", "0", "1e999", "nan", "a\nb", "\x00", "a\x00b", "\ud800", "\u202e", "\x1b[2J", "x" * 5_000,
    "../../x", "/etc/passwd", "..", ".", "~", "a/b", "..\\..\\x", "C:\\x", "CON", "NUL.json", "-rf", "%s{0}{a}", "$x$",
    "{{", "{{ a }}", "hf://a/b/c@main", "<script>", "=1+1", "a,b", "1,2,3", "shared", "none", "baseline", "cna",
    *("F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "F4"),  # of safetensors
    *_PLACEHOLDERS,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 2**64, 10**40, -(10**40), 10_000_000,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e200, math.nan, math.inf, -math.inf,
    [], {}, [[]], [{}], {"a": 1}, [None], [1, "a"], {"": {}}, ["x"] * 300, [[1, [2, [3]]]], *_WORDS,
)
_SNIPPETS = (
    b"&a [*a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!binary x", b"!!set {a, b}", b"2020-13-45",
    b"0x" + b"f" * 6_000, b"0b" + b"1" * 20_000, b"1" + b":59" * 20_000, b"1" * 5_000, b"- " * 400, b"? [a]\n: b",
    b"[" * 400, b"{" * 400, b"2020-01-01", b"---\n", b"...\n", b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b".inf", b"~",
    b'{"id": ', b"}", b'"', b"\n", b",", b"\\u0000", b"9" * 400,
)
# fmt: on
_SQL = (
    *DATABASES.values(),
    "CREATE TRIGGER t BEFORE INSERT ON {t} BEGIN SELECT RAISE(FAIL, 'no'); END",
    "DROP TABLE {t}",
    "DELETE FROM {t}",
    *(
        f"UPDATE {{t}} SET {{c}} = {value}"
        for value in ("CAST({c} AS BLOB)", "NULL", "1e308", "x'fffe'", "zeroblob(9)")
    ),
    *(f"PRAGMA {it}" for it in ("user_version = 9", "application_id = 7", "journal_mode = WAL", "encoding = 'UTF-16'")),
)


def mutated(data: bytes, shape: str, draw: random.Random) -> bytes:
    """Another file like this one.

    Args:
        data: a file, good or not.
        shape: "json", "lines", "yaml", "safetensors", "sqlite" or "text".
        draw: where chance comes from.
    """
    if shape in _SHAPES and draw.random() < (0.5 if shape == "yaml" else 0.8):
        with suppress(Exception):  # what was mutated before may be no document any more
            return _SHAPES[shape](data, draw)
    at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    match draw.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:end] + data[at:]
        case 3:  # a value in place of another, more often than not
            at = draw.choice([place + 1 for place, byte in enumerate(data) if byte in b" ,[\n"] or [at])
            return data[:at] + draw.choice(_SNIPPETS) + data[draw.choice((at, at + 8, max(at, end))) :]
    flipped = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 2, 8))):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _json(data: bytes, draw: random.Random) -> bytes:
    return _written(document(json.loads(data), draw))


def _lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at : at + 1] = [lines[at]] * 2 if draw.random() < 0.2 else [_json(lines[at], draw)]
    return b"\n".join(lines)


def _yaml(data: bytes, draw: random.Random) -> bytes:
    return _written(document(load_yaml(data), draw))  # JSON is YAML


def _safetensors(data: bytes, draw: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if draw.random() < 0.6:
        ours = head["__metadata__"]
        ours["lm-eval-cna"] = _json(ours["lm-eval-cna"], draw).decode()
    else:
        head = document(head, draw)
    text = _written(head)
    claimed = len(text) if draw.random() < 0.9 else draw.choice((0, 2**20, 10 * 2**30, 2**63))
    return struct.pack("<Q", claimed) + text + body[: draw.choice((len(body), len(body), len(body) // 2))]


def _sqlite(data: bytes, draw: random.Random) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        with closing(sqlite3.connect(file.name, isolation_level=None)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = draw.choice(sorted(tables))
            columns = [row[1] for row in database.execute(f"PRAGMA table_info('{table}')")]
            said = draw.choice(_SQL).format(t=table, c=draw.choice(columns))
            for statement in said.split("; ") if "BEGIN" not in said else [said]:
                database.execute(statement)
        return Path(file.name).read_bytes()


_SHAPES = {"json": _json, "lines": _lines, "yaml": _yaml, "safetensors": _safetensors, "sqlite": _sqlite}


def document(good: Any, draw: random.Random) -> Any:
    """Plain data with a few values changed."""
    root = [copy.deepcopy(good)]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        holder, key = _place(root, draw)
        value, hostile = holder[key], copy.deepcopy(draw.choice(_VALUES))  # another change may reach into it
        match draw.randrange(6):
            case 0 if holder is not root:
                del holder[key]
            case 1:
                other, at = _place(root, draw)
                holder[key] = copy.deepcopy(other[at])
            case 2 if isinstance(holder, dict):
                holder[draw.choice(_WORDS)] = holder.pop(key) if draw.random() < 0.5 else value
            case 3 if isinstance(value, list) and value:
                value.extend([draw.choice(value)] * draw.choice((1, 50)))
            case 3 if isinstance(value, (int, float)):
                holder[key] = draw.choice((value + 1, -value, value * 1000, str(value), float(value)))
            case 3:
                holder[key] = draw.choice(([value], {draw.choice(_WORDS): value}))
            case _:
                holder[key] = hostile
    return root[0]


def _place(root: list[Any], draw: random.Random) -> tuple[Any, Any]:
    """A value of a document, as what holds it and where."""
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and draw.random() < 0.85:
        holder = holder[key]
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    return holder, key


def _written(value: Any) -> bytes:
    text = json.dumps(value)
    for name, meant in _PLACEHOLDERS.items():
        text = text.replace(f'"{name}"', meant)
    return text.encode()
