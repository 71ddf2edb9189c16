"""Circuits on the hub, with the hub's own client on a cache made here: pinned, and held against their hashes."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from tests.helpers.report_runs import circuit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in the client's layout, which then asks no server: a small file by git's hash, a large one by SHA-256."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--owner--repo"
    circuit_of([(1, 2), (0, 3)]).write(tmp_path / "written.json")
    data = (tmp_path / "written.json").read_bytes()
    named = {
        "small.json": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        "folder/large.json": hashlib.sha256(data).hexdigest(),
    }
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for name, blob in named.items():
        (repo / "blobs" / blob).write_bytes(data)
        link = repo / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(repo / "blobs" / blob)
    return repo


@pytest.mark.parametrize("name", ["small.json", "folder/large.json"])
def test_a_commit_is_that_file_and_a_branch_says_which_it_was(
    name: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pinned = read_intervention(f"hf://owner/repo/{name}@{COMMIT}")
        assert isinstance(pinned, Circuit) and len(pinned.neurons) == 2 and not caplog.records
        assert read_intervention(f"hf://owner/repo/{name}@main") == pinned
    (record,) = caplog.records
    assert f"hf://owner/repo/{name}@{COMMIT}" in record.getMessage()


@pytest.mark.parametrize("name", ["small.json", "folder/large.json"])
def test_a_file_that_is_not_what_the_hub_said_is_refused(name: str, cache: Path) -> None:
    blob = (cache / "snapshots" / COMMIT / name).resolve()
    blob.write_bytes(blob.read_bytes().replace(b'"index": 2', b'"index": 4'))
    with pytest.raises(InterventionError, match=r"damaged in the hub's cache; got .*; allowed: .*; delete .*blobs"):
        read_intervention(f"hf://owner/repo/{name}@{COMMIT}")


def test_a_file_that_is_not_there_is_one_line(cache: Path) -> None:
    with pytest.raises(InterventionError, match=r"cannot fetch hf://owner/repo/other.json@main") as error:
        read_intervention("hf://owner/repo/other.json@main")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "hf://owner/repo/file.json",
        "hf://owner/repo/file.json@../../../tmp/x",
        "hf://owner/repo/../../x.json@main",
        "hf://owner/repo/a\\..\\x.json@main",
        "hf://owner/repo/a\0b.json@main",
        f"hf://owner/repo/{'x' * 300}.json@main",
        "hf://../repo/x.json@main",
    ],
)
def test_an_address_cannot_lead_out_of_the_cache(address: str, cache: Path) -> None:
    with pytest.raises(InterventionError, match=r"not an address .*; allowed: hf://owner/repo/file@revision"):
        read_intervention(address)
