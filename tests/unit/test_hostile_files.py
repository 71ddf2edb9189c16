"""Files from elsewhere may hold anything: a reader gives a valid object or one line, and neither hangs nor swells."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_cna.analysis.baseline import make_baseline, read_baseline, write_baseline
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.contrast import load_contrast
from lm_eval_cna.contrast_sources import read_spec
from lm_eval_cna.errors import CNAError
from lm_eval_cna.intervention import Vectors, read_intervention
from lm_eval_cna.paper.plan import read_prompts
from lm_eval_cna.plain_yaml import load_yaml
from lm_eval_cna.stability import read_stability
from lm_eval_cna.sweep.config import parse_config, read_config
from lm_eval_cna.sweep.rundir import RunDirectory
from lm_eval_cna.sweep.store import STORE_NAME, ResponseStore
from lm_eval_cna.sweep.summary import read_summary
from tests.report_runs import circuit_of, rich_run
from tests.unit.test_stability import record

SECONDS = 20  # far above what any of these takes, so that only a hang is caught
CONTRAST = b'{"name": "c"}\n{"label": "positive", "prompt": "a"}\n{"label": "negative", "prompt": "b"}\n'
CONFIG = (
    b"model: m\noutput: out\ntasks: [a, {task: b, num_fewshot: 5}]\nmodel_args: {dtype: float32}\nmultipliers: [0, 1]\n"
)
SPEC = (
    b"name: n\npositive: {dataset: a/b, revision: " + b"a" * 40 + b", column: c, choose: 3}\n"
    b"negative: {url: 'https://x/y.csv', sha256: " + b"a" * 64 + b", column: c, where: {k: v}}\n"
)


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError("the reader hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(read: Callable[[Path], Any], path: Path) -> bool:
    """Whether the file is refused, in one line; anything else but an object is a failure of the test."""
    try:
        with no_hang():
            read(path)
    except CNAError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 3_000
        return True
    return False


def _config(path: Path) -> Any:
    return parse_config(read_config(path))


def _spec(path: Path) -> Any:
    return read_spec(path)


def _store(path: Path) -> Any:
    with ResponseStore(path.parent) as store:
        return store.read("context")


def _of_run(read: Callable[[RunDirectory], Any]) -> Callable[[Path], Any]:
    def from_file(path: Path) -> Any:
        directory = path.parent if path.parent.name != "baseline" else path.parent.parent.parent
        return read(RunDirectory(directory))

    return from_file


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "circuit": ("circuit.json", read_intervention),
    "reference circuit": ("reference.json", read_intervention),
    "vectors": ("vectors.safetensors", read_intervention),
    "contrast": ("contrast.jsonl", load_contrast),
    "contrast by reference": ("contrast.yaml", _spec),
    "sweep": ("sweep.yaml", _config),
    "prompts": ("prompts.jsonl", read_prompts),
    "stability": ("circuit.stability.json", read_stability),
    "baseline": ("baseline.json", read_baseline),
    "manifest": ("run/manifest.json", _of_run(RunDirectory.manifest)),
    "summary": ("run/summary.json", _of_run(read_summary)),
    "results": ("run/cells/baseline/plain.json", _of_run(read_outcomes)),
    "store": (f"store/{STORE_NAME}", _store),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good file of every kind."""
    folder = tmp_path_factory.mktemp("valid")
    circuit_of([(1, 2), (0, 3)]).write(folder / "circuit.json")
    (folder / "reference.json").write_text(json.dumps({"1,-1,2": 0.5, "0,-1,3": -0.25}))
    tensors = {0: torch.ones(4), 1: torch.zeros(4)}
    Vectors(method="caa", name="v", place="write", tensors=tensors).write(folder / "vectors.safetensors")
    (folder / "contrast.jsonl").write_bytes(CONTRAST)
    (folder / "contrast.yaml").write_bytes(SPEC)
    (folder / "sweep.yaml").write_bytes(CONFIG)
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (folder / "circuit.stability.json").write_text(record().model_dump_json(by_alias=True))
    run = rich_run(folder / "run")
    write_baseline(folder / "baseline.json", make_baseline(run))
    (folder / "store").mkdir()
    with ResponseStore(folder / "store"):
        pass
    return {kind: folder / name for kind, (name, _) in READERS.items()}


@pytest.mark.parametrize("kind", READERS)
def test_a_good_file_is_read(kind: str, valid: dict[str, Path]) -> None:
    READERS[kind][1](valid[kind])


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(kept)


DEEP = 100_000
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)
)
HOSTILE = {
    "nothing": b"",
    "zeros": bytes(64),
    "not text": b"\xff\xfe\x00\x01",
    "a deep list": b"[" * DEEP,
    "a deep list, closed": b"[" * DEEP + b"]" * DEEP,
    "a deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep YAML": b"- " * 50_000 + b"a",
    "a huge integer": b'{"schema": ' + b"9" * 5_000 + b"}",
    "a huge YAML integer": b"model: " + b"9" * 5_000,
    "an alias bomb": BOMB + b"model: *j\noutput: *j\nname: *j\npositive: *j\n",
    "an alias of itself": b"model: &a [*a]\noutput: o\n",
    "merged aliases": b"a: &a {k: v}\nmodel: {<<: [*a, *a]}\n",
    "an object to build": b"!!python/object/apply:os.system ['true']",
    "a wrong date": b"model: 2020-13-45",
    "no number": b'{"schema": NaN, "neurons": [Infinity]}',
    "a lone surrogate": b'{"schema": "\\ud800"}',
    "a NUL": b'{"schema": "a\\u0000b"}',
    "a list": b"[]",
    "a number": b"17",
    "null": b"null",
    "a claim of 10 GB": struct.pack("<Q", 10 * 2**30) + b"{}",
    "a tensor beyond the file": (lambda h: struct.pack("<Q", len(h)) + h)(
        b'{"layer.0":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16000000000]}}'
    ),
    "no database": b"SQLite format 3\x00" + bytes(200),
    "one key twice": b'{"schema": "a", "schema": "b"}',
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("kind", READERS)
def test_hostile_bytes_are_refused_or_mean_something_small(kind: str, what: str, valid: dict[str, Path]) -> None:
    # A sweep's and a contrast set's YAML may well be a valid document of another kind; what counts is how it ends.
    with replaced(valid[kind], HOSTILE[what]):
        found = refused(READERS[kind][1], valid[kind])
    assert found or kind == "store"


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_a_device_and_a_folder_are_no_files(kind: str, valid: dict[str, Path], tmp_path: Path) -> None:
    path, kept = valid[kind], tmp_path / "kept"
    path.rename(kept)
    try:
        for make, undo in (
            (lambda: os.mkfifo(path), path.unlink),
            (lambda: path.symlink_to("/dev/zero"), path.unlink),
            (lambda: path.symlink_to(path), path.unlink),
            (path.mkdir, path.rmdir),
        ):
            make()
            try:
                # Results that are no file are not there: the run is not finished, which is no error.
                assert refused(READERS[kind][1], path) or kind == "results"
            finally:
                undo()
    finally:
        kept.rename(path)


@pytest.mark.parametrize("kind", ["circuit", "vectors", "stability", "baseline", "manifest", "summary", "sweep"])
def test_a_file_beyond_any_size_is_not_read(kind: str, valid: dict[str, Path]) -> None:
    """As a hole, so it takes no disk."""
    with replaced(valid[kind], b"{"):
        with valid[kind].open("r+b") as file:
            file.truncate(3 * 2**30)
        assert refused(READERS[kind][1], valid[kind])


def test_a_circuit_of_ten_million_neurons(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with path.open("wb") as file:
        file.write(b'{"schema": "lm-eval-cna/circuit/1", "neurons": [')
        chunk = b",\n".join(b'{"layer": 1, "index": %07d, "delta": 1.0}' % i for i in range(1000)) + b",\n"
        for _ in range(10_000):
            file.write(chunk)
    assert refused(read_intervention, path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "kind", ["circuit", "reference circuit", "stability", "baseline", "manifest", "summary", "results"]
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_value_of_another_kind_anywhere(kind: str, valid: dict[str, Path], data: st.DataObject) -> None:
    """One value of a good document is replaced, left out or put elsewhere."""
    path = valid[kind]
    document = json.loads(path.read_bytes())
    at, where = document, []
    while isinstance(at, (dict, list)) and at:
        where.append(at)
        key = data.draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else data.draw(st.integers(0, len(at) - 1))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.integers(0, 3)) == 0:
            if data.draw(st.booleans()):
                at[key] = data.draw(VALUES)
            else:
                del at[key]
            break
        at = at[key]
    with replaced(path, json.dumps(document).encode()):
        refused(READERS[kind][1], path)


@pytest.mark.parametrize("kind", READERS)
def test_flipped_cut_and_doubled_bytes(kind: str, valid: dict[str, Path]) -> None:
    draw, path = random.Random(kind), valid[kind]
    good = path.read_bytes()
    for _ in range(12):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 4))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        cut = draw.randrange(len(good))
        for hostile in (bytes(data), good[:cut], good[:cut] + good[draw.randrange(len(good)) :]):
            with replaced(path, hostile):
                refused(READERS[kind][1], path)


def test_ordinary_aliases_are_taken() -> None:
    assert load_yaml(b"a: &x {k: [1, 2]}\nb: *x\nc: {<<: *x, l: 3}\n") == {
        "a": {"k": [1, 2]},
        "b": {"k": [1, 2]},
        "c": {"k": [1, 2], "l": 3},
    }


def test_a_message_stays_short_whatever_it_shows() -> None:
    bomb: list[Any] = ["x"]
    for _ in range(40):
        bomb = [bomb] * 10
    with no_hang():
        assert len(str(CNAError("a", got=bomb))) < 500
        assert len(str(CNAError("a", got={"k": "v" * 10_000}))) < 500
