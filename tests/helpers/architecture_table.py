"""The table of architectures in README and docs/families.md, from what was run.

`python -m tests.helpers.architecture_table` rewrites it.

Columns fold, hook and rows: tiny random models of every family are steered here and compared with scaling by hand.
Columns vLLM and quantized: results/architectures/*.json, which the tests of these engines write; what was not run there
is an empty cell.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from tests.helpers.by_hand import columns_scaled_by_hand, scaled_by_hand
from tests.helpers.interventions import spread
from tests.helpers.models import DENSE, MIXTURES, prompts, tiny

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "architectures"
PAGES = (ROOT / "docs" / "families.md", ROOT / "README.md")
COMMAND = "python -m tests.helpers.architecture_table"
BEGIN, END = "<!-- architectures: begin -->\n", "<!-- architectures: end -->\n"
NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "falcon": "Falcon",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
    "olmoe": "OLMoE",
    "gpt_oss": "gpt-oss",
}
MULTIPLIERS = (0.0, 0.5, 2.0)
#: transformers' ways to compute experts; the first is its default.
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")


class Ran(NamedTuple):
    """What came of steering one family.

    Attributes:
        architecture: class name of the model.
        differences: way of steering -> largest difference of a logit from scaling by hand, over all multipliers.
        refused: way of steering -> why it was refused.
    """

    architecture: str
    differences: dict[str, float]
    refused: dict[str, str]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@cache
def ran(family: str) -> Ran:
    """Steer a tiny random model of a family in every way, neurons of all its down-projections."""
    model, ids = tiny(family), prompts(batch=2, length=6)
    architecture = find_architecture(model)
    chosen = spread(architecture)
    mixture = family in MIXTURES
    untouched, expected = logits(model, ids), {}
    for multiplier in MULTIPLIERS:
        with (scaled_by_hand if mixture else columns_scaled_by_hand)(model, chosen, multiplier):
            expected[multiplier] = logits(model, ids)
    assert min((found - untouched).abs().max() for found in expected.values()) > 1e-2, "the circuit must matter"
    differences: dict[str, float] = {}
    refused: dict[str, str] = {}
    for implementation in IMPLEMENTATIONS if mixture else (None,):
        if implementation is not None:
            model.set_experts_implementation(implementation)
        for way in ("fold", "hook", "rows"):
            name = way if implementation is None else f"{way} {implementation}"
            try:
                differences[name] = max(
                    float((_steered(model, way, Setting(chosen, m), ids) - expected[m]).abs().max())
                    for m in MULTIPLIERS
                )
            except SteeringError as error:
                refused[name] = str(error)
    return Ran(architecture.name, differences, refused)


def _steered(model: Any, way: str, setting: Setting, ids: torch.Tensor) -> torch.Tensor:
    if way == "rows":
        with RowSteering(model, [Setting(), setting]) as rows:
            rows.assign([1] * len(ids))
            return logits(model, ids)
    with steer(model, setting, mode=way):  # type: ignore[arg-type]
        return logits(model, ids)


def table() -> str:
    """What stands between the marks in the page."""
    vllm, quantized = _kept("vllm.json"), _kept("quantized.json")
    lines = ["| family | | fold | hook | rows | vLLM | quantized |", "|---|---|---|---|---|---|---|"]
    for family in (*DENSE, *MIXTURES):
        found = ran(family)
        cells = [
            NAMES[family],
            "MoE" if family in MIXTURES else "dense",
            *(_cell(found, way) for way in ("fold", "hook", "rows")),
            _passed(vllm, found.architecture),
            _passed(quantized, found.architecture),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "\n".join(lines)
        + "\n"
        + "".join(_source(name, kept) for name, kept in (("vLLM", vllm), ("Quantized", quantized)))
    )


def _cell(found: Ran, way: str) -> str:
    """yes, no, or the implementations of experts that allow it."""
    possible = [name for name in found.differences if name.split()[0] == way]
    refused = [name for name in found.refused if name.split()[0] == way]
    if not possible or not refused:
        return "yes" if possible else "no"
    return ", ".join(f"`{name.split()[1]}`" for name in possible)


def _passed(kept: dict[str, Any], architecture: str) -> str:
    """What was run of an engine and agreed; what was run and did not is named too."""
    checks = kept.get("families", {}).get(architecture, {})
    if checks and not any(checks.values()):
        return "no"
    return ", ".join(name if agreed is True else f"not {name}" for name, agreed in sorted(checks.items()))


def _source(name: str, kept: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in sorted(kept.get("versions", {}).items()))
    return f"\n{name}: {versions}, on {kept['machine']}.\n" if versions and isinstance(kept.get("machine"), str) else ""


def _kept(name: str) -> dict[str, Any]:
    path = RESULTS / name
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def split(page: str) -> tuple[str, str, str]:
    """The page before the table, the table, and what follows."""
    before, _, rest = page.partition(BEGIN)
    found, mark, after = rest.partition(END)
    assert mark, f"the page has no {BEGIN!r} and {END!r}"
    return before, found, after


def main() -> None:
    written = table()
    for page in PAGES:
        before, _, after = split(page.read_text(encoding="utf-8"))
        page.write_text(f"{before}{BEGIN}{written}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
