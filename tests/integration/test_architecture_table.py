"""Every family is steered as the table of families says, and the table says what was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_eval_cna.transformer.families import FAMILIES
from tests.helpers import architecture_table
from tests.helpers.architecture_table import COMMAND, NAMES, PAGES, ran, split, table
from tests.helpers.models import DENSE, MIXTURES


@pytest.mark.parametrize("family", DENSE)
def test_dense_families_are_steered_in_three_ways(family: str) -> None:
    found = ran(family)
    print(f"agreement: {found}")
    assert found.differences.keys() == {"fold", "hook", "rows"} and not found.refused
    assert max(found.differences.values()) < 2e-5


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_fold_and_hook_where_their_experts_allow_it(family: str) -> None:
    found = ran(family)
    print(f"agreement: {found}")
    assert found.differences.keys() == {
        "fold grouped_mm", "fold batched_mm", "fold eager", "hook grouped_mm", "hook batched_mm",
    }  # fmt: skip
    assert max(found.differences.values()) < 2e-5
    assert found.refused.keys() == {"hook eager", "rows grouped_mm", "rows batched_mm", "rows eager"}
    assert "eager implementation" in found.refused["hook eager"]
    assert "mixture of experts" in found.refused["rows grouped_mm"]


def test_every_family_that_is_known_is_in_the_table() -> None:
    assert set(FAMILIES) == {*DENSE, *MIXTURES} == set(NAMES)


def test_the_page_has_the_table() -> None:
    said = table()
    for page in PAGES:
        _, found, _ = split(page.read_text(encoding="utf-8"))
        assert found == said, f"{page.name} says something else than was run; `{COMMAND}` rewrites it"


def test_what_other_engines_wrote_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture_table, "RESULTS", tmp_path)
    row = next(line for line in table().splitlines() if line.startswith("| Llama "))
    assert row == "| Llama | dense | yes | yes | yes |  |  |", "what was not run is an empty cell"
    vllm = {
        "versions": {"vllm": "1.2"},
        "machine": "2 cores",
        "families": {"LlamaForCausalLM": {"tp2": True, "tp1": True}},
    }
    quantized = {
        "families": {"LlamaForCausalLM": {"a-4bit": True, "b-8bit": False}, "OlmoeForCausalLM": {"a-4bit": False}}
    }
    (tmp_path / "vllm.json").write_text(json.dumps(vllm), encoding="utf-8")
    (tmp_path / "quantized.json").write_text(json.dumps(quantized), encoding="utf-8")
    text = table()
    assert "| Llama | dense | yes | yes | yes | tp1, tp2 | a-4bit, not b-8bit |" in text
    assert "| OLMoE | MoE | yes | `grouped_mm`, `batched_mm` | no |  | no |" in text
    assert text.endswith("\nvLLM: vllm 1.2, on 2 cores.\n")
