"""Files from elsewhere may hold anything: a reader gives a valid object or one line, and neither hangs nor swells.

`tests.fuzz.targets` lists the readers; `make fuzz` tries them for longer, guided by the package's branches.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.contrast.sources import Source, rows
from lm_eval_cna.errors import CNAError, ContrastError
from lm_eval_cna.files.yaml_reader import load_yaml
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.failure import describe
from lm_eval_cna.judging.judge import shared_judge
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.summary import read_summary
from tests.fuzz.good import CONTRAST, build
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, check, put

SECONDS = 5.0  # `make fuzz` has one, on a machine that does nothing else
#: Random changes of a good file for each reader; a report takes a tenth of a second.
EXAMPLES, REPORTS = 30, 5

#: Module that opens files -> the readers that try it, or why none needs to.
OPENED = {
    "analysis/baseline.py": ("baseline",),
    "contrast/sources.py": ("contrast by reference",),
    "files/atomic.py": "opens them for the others",
    "files/jsonl.py": ("contrast",),
    "files/sqlite.py": ("response store", "judge's ledger"),
    "interventions/circuit.py": ("circuit", "circuit of experts", "reference circuit"),
    "interventions/stability.py": ("stability",),
    "interventions/vectors.py": ("vectors",),
    "judging/ledger.py": ("judge's ledger",),
    "judging/rubric.py": ("judge's template",),
    "models/vllm_engine/checkpoint.py": "reads what transformers reads, with its library",
    "organism/store.py": "holds every file against its hash, in the user's own cache",
    "paper/plan.py": ("prompts", "prompts as text"),
    "report/page.py": "only looks for its own name in figures and tables",
    "results/directory.py": ("manifest", "results", "summary", "verdicts", "divergences", "self-check", "evidence"),
    "results/responses.py": ("response store",),
    "sweep/config.py": ("sweep", "many sweeps"),
}

#: The readers that refuse what they cannot take; those of a whole run leave a bad file of it out, or say so.
REFUSE: dict[str, Callable[[Path], Any]] = {
    name: TARGETS[name].read
    for name in (
        *("circuit", "reference circuit", "vectors", "contrast", "contrast by reference", "sweep", "prompts"),
        *("stability", "baseline"),
    )
} | {
    "manifest": lambda path: RunDirectory(path.parent).manifest(),
    "summary": lambda path: read_summary(RunDirectory(path.parent)),
    "results": lambda path: read_outcomes(RunDirectory(path.parents[2])),
}


def test_every_module_that_opens_files_from_elsewhere_is_tried(repo_root: Path) -> None:
    package = repo_root / "lm_eval_cna"
    opens = re.compile(r"\b(read_whole|open_database|safe_open)\(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if opens.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(OPENED), "a new reader takes a line in tests/fuzz/targets.py and here"
    assert all(isinstance(by, str) or set(by) <= set(TARGETS) for by in OPENED.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of every kind."""
    made: Path = tmp_path_factory.mktemp("good")
    build(made)
    return made


@contextmanager
def quick() -> Iterator[None]:
    """No hang, and a second of this process's own time, three times that on a machine that is busy."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the reader hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    started = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - started < 3


def refused(read: Callable[[Path], Any], path: Path) -> bool:
    """Whether the file is refused, in one line; anything else but an object is a failure of the test."""
    with quick():
        try:
            read(path)
        except CNAError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 3_000
            return True
    return False


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_file_is_read(name: str, folder: Path) -> None:
    TARGETS[name].read(folder / TARGETS[name].file)


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    put(path, data)
    try:
        yield
    finally:
        put(path, kept)


@pytest.fixture
def good(name: str, folder: Path) -> bytes:
    return (folder / TARGETS[name].file).read_bytes()


def _try(name: str, folder: Path, good: bytes, draw: random.Random) -> None:
    target = TARGETS[name]
    path = folder / target.file
    data = mutated(good, target.shape, draw)
    with replaced(path, data):
        found = check(target, path, seconds=SECONDS)
        assert found is None, f"{found} of {data[:2_000]!r}"


@pytest.mark.parametrize("name", [name for name in TARGETS if not name.startswith("report")])
@settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_a_changed_file_is_refused_or_means_something_small(
    name: str, folder: Path, good: bytes, draw: random.Random
) -> None:
    _try(name, folder, good, draw)


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("report")])
@settings(max_examples=REPORTS, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_a_report_of_a_changed_run_too(name: str, folder: Path, good: bytes, draw: random.Random) -> None:
    _try(name, folder, good, draw)


DEEP = 100_000
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)
)
HOSTILE = {
    "nothing": b"",
    "not text": b"\xff\xfe\x00\x01",
    "a deep list": b"[" * DEEP + b"]" * DEEP,
    "open brackets": b"model: " + b"[" * 20_000,
    "a deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep YAML": b"- " * 50_000 + b"a",
    "a nest of 150": b'{"a":' * 150 + b"1" + b"}" * 150,
    "an integer that is no float": b'{"schema": ' + b"9" * 400 + b"}",
    "a huge integer": b'{"schema": ' + b"9" * 5_000 + b"}",
    "a YAML integer in base 16": b"model: 0x" + b"f" * 20_000,
    "a YAML integer in base 60": b"model: 1" + b":59" * 60_000,
    "many YAML values": b"[" + b"1," * 100_000 + b"1]",
    "an alias bomb": BOMB + b"model: *j\noutput: *j\nname: *j\npositive: *j\n",
    "an alias of itself": b"model: &a [*a]\noutput: o\n",
    "an object to build": b"!!python/object/apply:os.system ['true']",
    "a wrong date": b"model: 2020-13-45",
    "no number": b'{"schema": NaN, "neurons": [Infinity]}',
    "a lone surrogate": b'{"schema": "\\ud800"}',
    "a NUL": b'{"schema": "a\\u0000b"}',
    "a list": b"[]",
    "null": b"null",
    "a claim of 10 GB": struct.pack("<Q", 10 * 2**30) + b"{}",
    "a tensor beyond the file": (lambda h: struct.pack("<Q", len(h)) + h)(
        b'{"layer.0":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16000000000]}}'
    ),
    "no database": b"SQLite format 3\x00" + bytes(200),
    "one key twice": b'{"schema": "a", "schema": "b"}',
}


@pytest.mark.parametrize("kind", [*REFUSE, "response store", "judge's ledger"])
def test_hostile_bytes_are_refused(kind: str, folder: Path) -> None:
    path = folder / TARGETS[kind].file
    for what, data in HOSTILE.items():
        with replaced(path, data):
            # A database begins anew in an empty file.
            assert refused(REFUSE.get(kind, TARGETS[kind].read), path) or (kind not in REFUSE and not data), what


@pytest.mark.parametrize("kind", REFUSE)
def test_a_pipe_a_device_a_folder_and_a_hole_of_gigabytes_are_no_files(kind: str, folder: Path) -> None:
    path = folder / TARGETS[kind].file
    kept = path.with_name("kept")
    path.rename(kept)

    def hole() -> None:
        with path.open("wb") as file:
            file.truncate(3 * 2**30)

    try:
        for make in (
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(path),
            path.mkdir,
            hole,
        ):
            make()
            try:
                # Results that are no file are not there: the run is not finished, which is no error.
                assert refused(REFUSE[kind], path) or kind == "results"
            finally:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    finally:
        kept.rename(path)


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
    head, neuron = MANY[what]
    chunk = b"".join(neuron % number for number in range(10_000))
    (tmp_path / "c.json").write_bytes(head + chunk * (millions * 100))
    assert refused(read_intervention, tmp_path / "c.json")


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
    assert not refused(read_intervention, tmp_path / "c.json")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_vectors_of_no_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    header = {"schema": "lm-eval-cna/vectors/1", "method": "caa", "name": "n"}
    tensors = {"layer.0": torch.ones(4).to(dtype)}
    save_file(tensors, tmp_path / "v.safetensors", metadata={"lm-eval-cna": json.dumps(header)})
    assert refused(read_intervention, tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    "text",
    [
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
    assert refused(REFUSE["sweep"], tmp_path / "s.yaml")


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b", "\ud800", "x/" * 3_000])
def test_what_can_be_no_name_of_a_file_is_no_file(name: str) -> None:
    for suffix in (".json", ".safetensors", ".jsonl", ".yaml", ""):
        for read in (read_intervention, load_contrast, REFUSE["sweep"]):
            assert refused(read, Path(name + suffix))
    assert refused(lambda path: parse_judge({"model": "m", "ledger": str(path)}), Path(f"\0{name}"))


def test_a_contrast_set_with_half_a_character_or_from_a_device(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(CONTRAST.replace(b'"a"', b'"a\\ud800"'))
    assert refused(load_contrast, tmp_path / "c.jsonl")
    with quick(), pytest.raises(ContrastError, match="not a regular file"):
        rows(Source(url="/dev/zero", sha256="a" * 64, column="c"))


def test_a_judge_that_is_no_mapping_of_names_or_has_half_a_character() -> None:
    with pytest.raises(CNAError):
        parse_judge({1: "x"})
    config = parse_judge({"model": "m", "model_args": {"\ud800": "\udfff"}})
    assert shared_judge(config) is shared_judge(config)


@pytest.mark.parametrize("said", ["nan", "-inf", "inf", "1e999", "-1", "x", None, "9" * 5_000])
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
    with quick():
        for shown in (bomb, {"k": "v" * 10_000}, 10**5_000, [10**5_000]):  # Python writes no more than 4,300 digits
            assert len(str(CNAError("a", got=shown))) < 500
        assert len(str(CNAError("a" * 10_000, got="b", allowed="c" * 10_000, do="d"))) < 3_000
