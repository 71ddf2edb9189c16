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

OPEN = Gates(tone=0.0, refused=0.0, refused_benign=1.0, refused_ablated=1.0, well_formed=0.0)
TINY = dataclasses.replace(
    Recipe(),
    threads=1, hidden=16, mlp_width=32, layers=3, heads=2, planted=4, planted_layers=(1, 2), batch_size=4,
    base_documents=20, base_steps=2, tuning_documents=8, instruct_steps=1, diffuse_steps=1, gates=OPEN,
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_EVAL_CNA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("organism") / "tiny"
    store.train_organism(directory, recipe=TINY)
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
    again = store.train_organism(tmp_path / "again", recipe=TINY)
    for variant in store.VARIANTS:
        mine, theirs = (load_file(root / variant / "model.safetensors") for root in (trained, again.root))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    records = [json.loads((root / "organism.json").read_text()) for root in (trained, again.root)]
    assert all(record.pop("seconds") > 0 for record in records)
    assert records[0] == records[1]
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "scratch directories were left behind"


def test_the_record_says_what_was_done(trained: Path) -> None:
    record = json.loads((trained / "organism.json").read_text())
    assert record["schema"] == "lm-eval-cna/organism/1"
    assert record["recipe_sha256"] == TINY.sha256() and record["seed"] == 1 and record["rejected"] == []
    assert set(record["gates"]) == {"base", "instruct", "instruct_planted_ablated", "diffuse"}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert all(layer in (1, 2) and 0 <= index < 32 for layer, index in record["planted"])


def test_the_cache_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    first = store.ensure_organism(recipe=TINY, progress=lambda *step: stages.append(step))
    assert first.root.parent == cache / "organism"
    assert stages == [
        (f"training {stage}", done, total)
        for stage, done, total in (("base", 1, 2), ("base", 2, 2), ("instruct", 1, 1), ("diffuse", 1, 1))
    ]
    forbid_training(monkeypatch)
    assert store.ensure_organism(recipe=TINY) == first


@pytest.mark.parametrize("damage", ["missing", "truncated", "no record", "half a record"])
def test_a_damaged_organism_is_rebuilt(copied: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = store.cache_root() / "organism" / TINY.sha256()[:16]
    home.parent.mkdir(parents=True)
    copied.rename(home)
    weights = home / "instruct" / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(whole[:-10])
    elif damage == "no record":
        (home / "organism.json").unlink()
    else:
        (home / "organism.json").write_text('{"schema"')
    assert store.load_organism(home, TINY) is None
    assert store.ensure_organism(recipe=TINY).root == home
    assert weights.read_bytes() == whole


def test_another_recipe_is_another_organism(trained: Path) -> None:
    assert store.load_organism(trained, dataclasses.replace(TINY, diffuse_steps=2)) is None
    assert dataclasses.replace(TINY, version=TINY.version + 1).sha256() != TINY.sha256()


def test_other_peoples_files_are_never_replaced(copied: Path, tmp_path: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        store.ensure_organism(copied, recipe=dataclasses.replace(TINY, base_steps=1))
    own = tmp_path / "own"
    (own / "base").mkdir(parents=True)
    with pytest.raises(ConfigError, match="base"):
        store.ensure_organism(own, recipe=TINY)
    assert (copied / "notes.txt").read_text() == "mine" and (own / "base").is_dir()
    with pytest.raises(ConfigError, match="directory"):
        store.ensure_organism(copied / "notes.txt", recipe=TINY)


def test_a_whole_organism_is_used_whatever_stands_beside_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "circuit.json").write_text("{}")
    forbid_training(monkeypatch)
    assert store.ensure_organism(copied, recipe=TINY).root == copied


def test_seeds_run_out_with_a_clear_error(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, seeds=(1, 2), gates=Gates())
    with pytest.raises(RunError, match="no organism passed its gates") as raised:
        store.train_organism(tmp_path / "organism", recipe=recipe)
    assert "base" in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_next_seed_is_tried_and_the_rejected_one_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_cna.organism import build

    real = build.build_candidate

    def reject_first(recipe: Recipe, seed: int, *rest: object) -> build.Candidate:
        candidate = real(recipe, seed, *rest)
        return dataclasses.replace(candidate, failed="instruct") if seed == 1 else candidate

    monkeypatch.setattr(build, "build_candidate", reject_first)
    paths = store.train_organism(tmp_path / "organism", recipe=TINY)
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
        "import sys; from pathlib import Path; from tests.organism.test_store import TINY;"
        "from lm_eval_cna.organism import store; print(store.ensure_organism(Path(sys.argv[1]), recipe=TINY).planted)"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "organism")]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] and store.load_organism(tmp_path / "organism", TINY) is not None
