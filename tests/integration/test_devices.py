"""Weights that are not where the module seems to hold them: offloaded, or cut over processes; nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.compatibility import fit_warnings
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering.setting import Setting
from tests.helpers.checkpoints import save_llama
from tests.helpers.interventions import circuit
from tests.helpers.models import tiny
from tests.helpers.observed import CONTRAST, differs, families, observed
from tests.helpers.processes import torchrun

#: Families whose plan of tensor parallelism transformers knows; of the others, none is cut.
WITH_A_PLAN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "olmo2", "gpt_neox")
ON_CPU = dict.fromkeys(
    ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("devices") / "tiny")


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> dict[str, Any]:
    return observed(CNAHFLM(pretrained=str(checkpoint), device="cpu"), modes=("auto", "fold", "hook"))


def test_what_is_observed_tells_two_models_apart(plain: dict[str, Any], tmp_path: Path) -> None:
    other = observed(CNAHFLM(pretrained=str(save_llama(tmp_path / "other", seed=1)), device="cpu"))
    for what in ("weights", "columns", "baseline", "neurons", "deltas", "vectors", "texts", "scores", "rows", "write"):
        assert differs(plain[what], other[what]) is not None, what
    assert plain["restored"] and plain["mode"] == {"auto": "fold", "fold": "fold", "hook": "hook"}
    for what in ("m=0/fold", "m=2/hook", "m=-1/fold", "rows", "write", "block"):
        assert differs(plain[what], plain["baseline"], 0.1) is not None, what


@pytest.mark.parametrize(
    "load",
    [
        {"device_map": {**ON_CPU, "model.layers.1": "disk"}},
        {"device_map": dict.fromkeys(ON_CPU, "disk")},
        {"max_cpu_memory": 60_000},
    ],
    ids=["one layer on the disk", "all on the disk", "as accelerate decides"],
)
def test_offloaded_weights(checkpoint: Path, plain: dict[str, Any], tmp_path: Path, load: dict[str, Any]) -> None:
    lm = CNAHFLM(
        pretrained=str(checkpoint), device="cpu", parallelize=True, offload_folder=str(tmp_path / "offload"), **load
    )
    assert "disk" in lm.model.hf_device_map.values()
    found = observed(lm)
    assert found["restored"] and found["mode"] == {"auto": "hook", "hook": "hook"}
    hooked = {name: value for name, value in plain.items() if name != "mode"}
    assert differs(found, hooked | {"m=0/auto": plain["m=0/hook"]}) is None
    lm.mode = "fold"
    with pytest.raises(SteeringError, match=r"cannot fold: model\.layers\.\d\.mlp\.down_proj is offloaded and loaded"):
        lm.steer(Setting(circuit(lm.architecture), 0.0))


def test_a_circuit_is_verified_against_weights_on_the_disk(checkpoint: Path, tmp_path: Path) -> None:
    def loaded(seed: int) -> CNAHFLM:
        folder = checkpoint if seed == 0 else save_llama(tmp_path / "other", seed=seed)
        where = {"device_map": dict.fromkeys(ON_CPU, "disk"), "offload_folder": str(tmp_path / f"offload{seed}")}
        return CNAHFLM(pretrained=str(folder), device="cpu", parallelize=True, **where)

    here = CNAHFLM(pretrained=str(checkpoint), device="cpu")
    measured = measure(
        here.model, here.tokenizer, CONTRAST, universal_filter=False, check_leakage=False, settings=Settings()
    )
    found = cna.find(measured, fraction=0.1)
    assert found.model.columns_sha256 is not None and found.places

    def warned(lm: CNAHFLM) -> tuple[str, ...]:
        return fit_warnings(found, lm.architecture, revision=None, chat_template_sha256=None)

    assert warned(loaded(0)) == ()
    (warning,) = warned(loaded(1))
    assert warning.startswith("weights: the columns of the named neurons are not those")


def test_weights_that_are_cut_over_two_processes(checkpoint: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    for family in WITH_A_PLAN:
        tiny(family).save_pretrained(tmp_path / family)
    torchrun("tests.helpers.observed", checkpoint, tmp_path / "saw", tmp_path, *WITH_A_PLAN)
    first, second = (json.loads((tmp_path / f"saw.{rank}").read_text()) for rank in (0, 1))
    assert first.pop("held") == [[0, 32], [0, 32]] and second.pop("held") == [[32, 64], [32, 64]]
    alone = families(tmp_path, WITH_A_PLAN)
    for saw in (first, second):
        found = saw.pop("families")
        assert saw.keys() == plain.keys() and saw["mode"] == {"auto": "fold", "fold": "fold", "hook": "hook"}
        assert saw["restored"] and differs(saw, plain) is None
        for family in WITH_A_PLAN:
            assert found[family]["restored"], family
            assert differs(found[family], alone[family]) is None, family
