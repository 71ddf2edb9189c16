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

#: Stand for what `json.dumps` cannot write; see `_written`.
_PLACEHOLDERS = {
    "@digits@": "9" * 5_000,
    "@some digits@": "9" * 400,
    "@deep list@": "[" * 20_000 + "]" * 20_000,
    "@quite deep@": '{"a":' * 150 + "1" + "}" * 150,
    "@tall@": '{"a":' * 90 + "1" + "}" * 90,
    "@open@": "[" * 5_000,
}
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 2**64, 10**40, -(10**40), 10_000_000),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e200, math.nan, math.inf, -math.inf),
    *("", " ", "a", "0", "1e999", "nan", "a\nb", "\x00", "a\x00b", "\ud800", "\u202e", "\x1b[2J", "x" * 5_000),
    *(
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "~",
        "a/b",
        "..\\..\\x",
        "C:\\x",
        "CON",
        "NUL.json",
        "-rf",
        "%s{0}{a}",
        "$x$",
    ),
    *("{{", "{{ a }}", "hf://a/b/c@main", "<script>", "=1+1", "a,b", "1,2,3", "shared", "none", "baseline", "cna"),
    *([], {}, [[]], [{}], {"a": 1}, [None], [1, "a"], {"": {}}, ["x"] * 300, [[1, [2, [3]]]]),
    *_PLACEHOLDERS,
)
_SNIPPETS = (
    *(
        b"&a [*a]",
        b"*a",
        b"<<: *a",
        b"!!python/object/apply:os.system [x]",
        b"!!binary x",
        b"!!set {a, b}",
        b"2020-13-45",
    ),
    *(b"0x" + b"f" * 6_000, b"0b" + b"1" * 20_000, b"1" + b":59" * 20_000, b"1" * 5_000, b"- " * 400, b"? [a]\n: b"),
    *(b"[" * 400, b"{" * 400, b"2020-01-01", b"---\n", b"...\n", b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b".inf", b"~"),
    *(b'{"id": ', b"}", b'"', b"\n", b",", b"\\u0000", b"9" * 400),
)
_DTYPES = (
    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL", "F8_E4M3", "F8_E5M2"),
    *("F8_E8M0", "C64", "F4", "X"),
)
_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
_SQL = (
    "ALTER TABLE {t} RENAME TO old; CREATE VIEW {t} AS SELECT * FROM old, ({e} SELECT x FROM n)",
    "ALTER TABLE {t} RENAME TO old; CREATE VIEW {t} AS SELECT * FROM old",
    "CREATE TRIGGER t AFTER INSERT ON {t} BEGIN DELETE FROM {t}; END",
    "CREATE TRIGGER t BEFORE INSERT ON {t} BEGIN SELECT RAISE(FAIL, 'no'); END",
    "CREATE TRIGGER t AFTER INSERT ON {t} BEGIN INSERT INTO {t} SELECT new.{c} || x FROM "
    "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n); END",
    "ALTER TABLE {t} ADD COLUMN more TEXT GENERATED ALWAYS AS (printf('%.*c', 100000000, 'x'))",
    "DROP TABLE {t}; CREATE TABLE {t} (a)",
    "DROP TABLE {t}",
    "CREATE TABLE extra (a)",
    "CREATE INDEX slow ON {t} (printf('%.*c', 1000, {c}))",
    "UPDATE {t} SET {c} = CAST({c} AS BLOB)",
    "UPDATE {t} SET {c} = NULL",
    "UPDATE {t} SET {c} = 1e308",
    "UPDATE {t} SET {c} = x'fffe'",
    "UPDATE {t} SET {c} = zeroblob(1000000)",
    "DELETE FROM {t}",
    "PRAGMA user_version = 99",
    "PRAGMA application_id = 7",
    "PRAGMA journal_mode = WAL",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = 1",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'CREATE TABLE x(y)'",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET type = 'view', rootpage = 0, "
    "sql = 'CREATE VIEW {t} AS {e} SELECT x AS {c} FROM n' WHERE name = '{t}'",
)


def mutated(data: bytes, shape: str, draw: random.Random) -> bytes:
    """Another file like this one.

    Args:
        data: a file, good or not.
        shape: "json", "lines", "yaml", "safetensors", "sqlite" or "text".
        draw: where chance comes from.
    """
    if shape != "text" and draw.random() < 0.8:
        with suppress(Exception):  # what was mutated before may be no document any more
            return _SHAPES[shape](data, draw)
    return _bytes(data, draw)


def _bytes(data: bytes, draw: random.Random) -> bytes:
    at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    match draw.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:end] + data[at:]
        case 3:
            return data[:at] + draw.choice(_SNIPPETS) + data[draw.choice((at, end)) :]
    flipped = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 2, 8))):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _json(data: bytes, draw: random.Random) -> bytes:
    return _written(document(json.loads(data), draw))


def _lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    if draw.random() < 0.2:
        lines.insert(draw.randrange(len(lines)), lines[at])
    else:
        lines[at] = _json(lines[at], draw)
    return b"\n".join(lines)


def _yaml(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        places = [at for at, byte in enumerate(data) if byte in b" ,[\n"] or [0]
        at = draw.choice(places) + 1
        return data[:at] + draw.choice(_SNIPPETS) + data[draw.choice((at, min(at + 8, len(data)))) :]
    return _written(document(load_yaml(data), draw))  # JSON is YAML


def _safetensors(data: bytes, draw: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    ours = (head.get("__metadata__") or {}).get("lm-eval-cna")
    if isinstance(ours, str) and draw.random() < 0.6:
        head["__metadata__"]["lm-eval-cna"] = _written(document(json.loads(ours), draw)).decode()
    elif draw.random() < 0.3:
        named = draw.choice([key for key in head if key != "__metadata__"])
        head[named]["dtype"] = draw.choice(_DTYPES)
    else:
        head = document(head, draw)
    text = _written(head)
    claimed = len(text) if draw.random() < 0.9 else draw.choice((0, 2**20, 10 * 2**30, 2**63))
    return struct.pack("<Q", claimed) + text + body[: draw.choice((len(body), len(body), len(body) // 2))]


def _sqlite(data: bytes, draw: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = draw.choice(sorted(tables))
            columns = [row[1] for row in database.execute(f"PRAGMA table_info('{table}')")]
            said = draw.choice(_SQL).format(t=table, c=draw.choice(columns), e=_ENDLESS)
            for statement in said.split("; ") if "BEGIN" not in said else [said]:
                database.execute(statement)
        return path.read_bytes()


_SHAPES = {"json": _json, "lines": _lines, "yaml": _yaml, "safetensors": _safetensors, "sqlite": _sqlite}


def document(good: Any, draw: random.Random) -> Any:
    """Plain data with a few values changed."""
    root = [copy.deepcopy(good)]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        _change(root, draw)
    return root[0]


def _change(root: list[Any], draw: random.Random) -> None:
    holder, key = _place(root, draw)
    value = holder[key]
    match draw.randrange(8):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(draw.choice(HOSTILE))  # another change may reach into it
        case 3 if holder is not root:
            del holder[key]
        case 4:
            other, at = _place(root, draw)
            holder[key] = copy.deepcopy(other[at])
        case 5:
            holder[key] = [value] if draw.random() < 0.5 else {draw.choice(("a", "0", "", "../x")): value}
        case 6 if isinstance(holder, dict):
            name = draw.choice([word for word in HOSTILE if isinstance(word, str)])
            holder[name] = holder.pop(key) if draw.random() < 0.5 else value
        case 7 if isinstance(value, list) and value:
            value.extend([draw.choice(value)] * draw.choice((1, 50)))
        case _ if isinstance(value, (int, float)):
            holder[key] = draw.choice((value + 1, -value, value * 1000, str(value), float(value)))
        case _:
            holder[key] = copy.deepcopy(draw.choice(HOSTILE))


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
