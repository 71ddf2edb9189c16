"""Organisms on disk: cached by recipe, verified, rebuilt when damaged, never over somebody else's files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.organism import store
from lm_eval_cna.organism.recipe import Gates, Recipe
from tests.helpers.organism import TINY


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_EVAL_CNA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("organism") / "tiny"
    store.ensure_organism(directory, recipe=TINY)
    return directory


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "organism"))


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise AssertionError("trained although an organism was there")

    monkeypatch.setattr(store, "_train_into", fail)


def test_checkpoints_are_ordinary(trained: Path) -> None:
    paths = store.load_organism(trained, TINY)
    assert paths is not None and len(paths.planted) == 4
    assert store.load_organism(trained, dataclasses.replace(TINY, diffuse_steps=3)) is None, "another recipe"
    for directory in (paths.base, paths.instruct, paths.diffuse):
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        generation = GenerationConfig.from_pretrained(directory)
        assert model.dtype == torch.float32 and model.config.max_position_embeddings == 4096
        assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert tokenizer.apply_chat_template([{"role": "user", "content": " Hi "}], tokenize=False) == (
            "<|begin|><|user|>Hi<|end|>"
        )


def test_training_again_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    again = store.ensure_organism(tmp_path / "again", recipe=TINY)
    for variant in store.VARIANTS:
        mine, theirs = (load_file(root / variant / "model.safetensors") for root in (trained, again.root))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    records = [json.loads((root / "organism.json").read_text()) for root in (trained, again.root)]
    assert all(record.pop("seconds") > 0 for record in records)
    assert records[0] == records[1]
    record = records[0]
    assert record["schema"] == "lm-eval-cna/organism/1"
    assert record["recipe_sha256"] == TINY.sha256() and record["seed"] == 1 and record["rejected"] == []
    assert set(record["gates"]) == {"base", "instruct", "instruct_planted_ablated", "diffuse"}
    assert record["versions"]["torch"] and all(layer in (1, 2) for layer, _ in record["planted"])
    assert {path.name for path in tmp_path.iterdir()} == {".again.lock", "again"}, (
        "scratch directories were left behind"
    )


def test_the_cache_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    first = store.ensure_organism(recipe=TINY, progress=lambda *step: stages.append(step))
    assert first.root.parent == cache / "organism"
    steps = {"base": TINY.base_steps, "instruct": TINY.instruct_steps, "diffuse": TINY.diffuse_steps}
    assert stages == [(f"training {name}", i + 1, total) for name, total in steps.items() for i in range(total)]
    forbid_training(monkeypatch)
    assert store.ensure_organism(recipe=TINY) == first


@pytest.mark.parametrize(("name", "left"), [("instruct/model.safetensors", -10), ("organism.json", 9)])
def test_a_damaged_organism_is_rebuilt(copied: Path, name: str, left: int) -> None:
    home = store.cache_root() / "organism" / TINY.sha256()[:16]
    home.parent.mkdir(parents=True)
    copied.rename(home)
    weights = home / "instruct" / "model.safetensors"
    whole = weights.read_bytes()
    (home / name).write_bytes((home / name).read_bytes()[:left])
    assert store.load_organism(home, TINY) is None
    assert store.ensure_organism(recipe=TINY).root == home
    assert weights.read_bytes() == whole


def test_other_peoples_files_are_never_replaced(copied: Path, tmp_path: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    assert store.ensure_organism(copied, recipe=TINY).root == copied, "a whole organism is used as it is"
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        store.ensure_organism(copied, recipe=dataclasses.replace(TINY, base_steps=1))
    own = tmp_path / "own"
    (own / "base").mkdir(parents=True)  # without our record, it may be the user's own model
    with pytest.raises(ConfigError, match="base"):
        store.ensure_organism(own, recipe=TINY)
    assert (copied / "notes.txt").read_text() == "mine" and (own / "base").is_dir()
    with pytest.raises(ConfigError, match="directory"):
        store.ensure_organism(copied / "notes.txt", recipe=TINY)


def test_seeds_run_out_with_a_clear_error(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, seeds=(1, 2), gates=Gates())
    with pytest.raises(RunError, match="no organism passed its gates") as raised:
        store.ensure_organism(tmp_path / "organism", recipe=recipe)
    assert "base" in str(raised.value) and "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [".organism.lock"]


def test_the_next_seed_is_tried_and_the_rejected_one_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_cna.organism import build

    real = build.build_candidate

    def reject_first(recipe: Recipe, seed: int, *rest: object) -> build.Candidate:
        candidate = real(recipe, seed, *rest)
        return dataclasses.replace(candidate, failed="instruct") if seed == 1 else candidate

    monkeypatch.setattr(build, "build_candidate", reject_first)
    paths = store.ensure_organism(tmp_path / "organism", recipe=TINY)
    record = json.loads((paths.root / "organism.json").read_text())
    assert record["seed"] == 2
    assert [(item["seed"], item["failed"]) for item in record["rejected"]] == [(1, "instruct")]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("LM_EVAL_CNA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_root() == tmp_path / "xdg" / "lm-eval-cna"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.cache_root() == tmp_path / "home" / ".cache" / "lm-eval-cna"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_at_once_share_one_training(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from tests.helpers.organism import TINY;"
        "from lm_eval_cna.organism import store; print(store.ensure_organism(Path(sys.argv[1]), recipe=TINY).planted)"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "organism")]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] and store.load_organism(tmp_path / "organism", TINY) is not None
