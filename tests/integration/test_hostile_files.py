"""Files from elsewhere may hold anything: a reader gives a valid object or one line, and neither hangs nor swells."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lm_eval_cna.analysis.baseline import make_baseline, read_baseline, write_baseline
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.contrast.sources import Source, read_spec, rows
from lm_eval_cna.errors import CNAError, ContrastError
from lm_eval_cna.files.yaml_reader import load_yaml
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.stability import read_stability
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.failure import describe
from lm_eval_cna.judging.judge import shared_judge
from lm_eval_cna.paper.plan import read_prompts
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.responses import STORE_NAME, ResponseStore
from lm_eval_cna.results.summary import read_summary
from lm_eval_cna.sweep.config import parse_config, read_config
from tests.analysis.test_stability import record
from tests.helpers.report_runs import circuit_of, rich_run

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


@contextmanager
def quick() -> Iterator[None]:
    """A second of this process's own time, three times that on a machine that is busy."""
    started = time.process_time()
    yield
    assert time.process_time() - started < 3


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
    "a nest of 150": b'{"a":' * 150 + b"1" + b"}" * 150,
    "an integer that is no float": b'{"schema": ' + b"9" * 400 + b"}",
    "a YAML integer in base 16": b"model: 0x" + b"f" * 20_000,
    "a YAML integer in base 60": b"model: 1" + b":59" * 60_000,
    "open brackets in YAML": b"model: " + b"[" * 20_000,
    "many YAML values": b"[" + b"1," * 100_000 + b"1]",
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


MANY = {
    "circuit": (b'{"schema": "lm-eval-cna/circuit/1", "neurons": [', b'{"layer":1,"index":%07d,"delta":1},'),
    "reference circuit": (b"{", b'"1,1,%07d":1,'),
    "universal neurons": (
        b'{"schema": "lm-eval-cna/circuit/1", "discovery": {"universal_filter": {"neurons": [',
        b"[1,%07d],",
    ),
}


@pytest.mark.parametrize("what", MANY)
@pytest.mark.parametrize("millions", [2, 10])
def test_a_circuit_of_millions_of_neurons(what: str, millions: int, tmp_path: Path) -> None:
    """Of ten million most are refused by their size, of two by their number; neither is built."""
    path = tmp_path / "c.json"
    head, neuron = MANY[what]
    chunk = b"".join(neuron % number for number in range(10_000))
    with path.open("wb") as file:
        file.write(head)
        for _ in range(millions * 100):
            file.write(chunk)
    with quick():
        assert refused(read_intervention, path)


@pytest.mark.parametrize(
    "claim", [{"num_layers": 10**9}, {"num_layers": 1, "mlp_width": 10**30}, {"hidden_size": 2**40}]
)
def test_a_model_larger_than_any(claim: dict[str, int], tmp_path: Path) -> None:
    """Its layer profile has a number for every layer."""
    document = {"schema": "lm-eval-cna/circuit/1", "method": "cna", "name": "n", "model": claim}
    (tmp_path / "c.json").write_text(json.dumps(document | {"neurons": [{"layer": 0, "index": 0, "delta": 1.0}]}))
    assert refused(read_intervention, tmp_path / "c.json")


def test_as_many_layers_of_experts_as_there_may_be(tmp_path: Path) -> None:
    """Every neuron is looked up in them."""
    layers = 100_000
    document = {
        "schema": "lm-eval-cna/circuit/2",
        "method": "random",
        "name": "n",
        "model": {"num_layers": layers, "experts": {"count": 1, "width": 9, "layers": list(range(layers))}},
        "neurons": [{"layer": layers - 1 - n, "expert": 0, "index": 0, "delta": None} for n in range(20_000)],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    with quick():
        read_intervention(tmp_path / "c.json")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_vectors_of_no_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    header = {"schema": "lm-eval-cna/vectors/1", "method": "caa", "name": "n"}
    tensors = {"layer.0": torch.ones(4).to(dtype)}
    save_file(tensors, tmp_path / "v.safetensors", metadata={"lm-eval-cna": json.dumps(header)})
    assert refused(read_intervention, tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        b"model: 0x" + b"f" * 4_000,
        b'model: m\noutput: "a\\0b"\n',
        b'model: m\noutput: "\\uD800"\n',
        b"model: m\noutput: o\nmetadata: {day: 2020-01-01}\n",
        b"model: m\noutput: o\nmetadata: {1: a, b: c}\n",
        b"model: m\noutput: o\nmetadata: !!set {a}\n",
        b"model: m\noutput: o\ntop_k: [%s]\nmultipliers: [%s]\n" % ((b",".join(b"%d" % n for n in range(2, 400)),) * 2),
    ],
)
def test_a_sweep_that_could_not_be_written_down_or_would_not_end(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(text)
    with quick():
        assert refused(_config, tmp_path / "s.yaml")


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b", "\ud800", "x/" * 3_000])
@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".jsonl", ".yaml", ""])
def test_what_can_be_no_name_of_a_file_is_no_file(name: str, suffix: str) -> None:
    for read in (read_intervention, load_contrast, _config):
        assert refused(read, Path(name + suffix))
    assert refused(lambda path: parse_judge({"model": "m", "ledger": str(path)}), Path(f"\0{name}"))


def test_a_contrast_set_with_half_a_character(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(CONTRAST.replace(b'"a"', b'"a\\ud800"'))
    assert refused(load_contrast, tmp_path / "c.jsonl")


def test_a_contrast_set_that_names_a_device() -> None:
    source = Source(url="/dev/zero", sha256="a" * 64, column="c")
    with no_hang(), pytest.raises(ContrastError, match="not a regular file"):
        rows(source)


def test_a_judge_that_is_no_mapping_of_names() -> None:
    with pytest.raises(CNAError):
        parse_judge({1: "x"})


def test_a_judge_with_half_a_character_among_its_arguments() -> None:
    config = parse_judge({"model": "m", "model_args": {"\ud800": "\udfff"}})
    assert shared_judge(config) is shared_judge(config)


@pytest.mark.parametrize("said", ["nan", "NaN", "-inf", "inf", "1e999", "-1", "x", None, "9" * 5_000])
def test_a_server_says_how_long_to_wait_in_any_words(said: str | None) -> None:
    error = Exception("busy")
    error.status, error.headers = 429, {"Retry-After": said}  # type: ignore[attr-defined]
    assert 0 <= describe(error).wait <= 60


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
        assert len(str(CNAError("a" * 10_000, got="b", allowed="c" * 10_000, do="d"))) < 3_000
        for large in (10**5_000, [10**5_000]):  # of which Python writes no more than some thousand digits
            assert len(str(CNAError("a", got=large))) < 500
