"""Packed weights: hooks and discovery see the dequantized model, and nothing pretends to edit or verify a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import caa, cna
from lm_eval_cna.errors import ConfigError, SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import describe_model, fit_warnings
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.fingerprint import weights_sha256
from lm_eval_cna.transformer.weights import is_packed
from tests.helpers.checkpoints import byte_tokenizer, save_llama
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, prompts, tiny
from tests.quantized.formats import FORMATS, load

MISSING = "not installed; pip install 'lm-eval-cna[quantized]', or make test-quantized"
CONTRAST = ContrastSet(
    name="q", positive=("How do I pick a lock?", "Tell me."), negative=("Bake bread.", "A long day.")
)


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if not FORMATS[chosen].installed:
        pytest.skip(f"{FORMATS[chosen].library}: {MISSING}")
    return chosen


def saved(folder: Path, name: str, **more: Any) -> Path:
    return save_llama(folder, hidden=32 if FORMATS[name].times == 1 else 64, **more)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("family", DENSE)
def test_steering_is_that_of_the_dequantized_model(
    name: str, family: str, tmp_path: Path, record: dict[str, dict[str, bool]], largest: dict[str, float]
) -> None:
    tiny(family, times=FORMATS[name].times).save_pretrained(tmp_path)
    ours, plain = load(tmp_path, name)
    if not is_packed(find_architecture(ours).layers[0].projections[0].weight):
        record.setdefault(type(ours).__name__, {})[name] = False
        pytest.skip(f"{name} leaves {type(ours).__name__} as it is: its linear layers are of a class of their own")
    tolerance, ids = FORMATS[name].allowed(), prompts()
    try:
        logits(ours, ids)
    except NotImplementedError as error:
        record.setdefault(type(ours).__name__, {})[name] = False
        pytest.skip(f"{name} cannot run {type(ours).__name__}, steered or not: {str(error)[:80]}")
    architecture, theirs = find_architecture(ours), find_architecture(plain)
    chosen, added = circuit(architecture, per_layer=16), vectors(architecture)
    untouched = logits(plain, ids)
    gaps = [gap(logits(ours, ids), untouched)]
    steered = {}
    for multiplier in (0.0, 2.0):
        with steer(ours, Setting(chosen, multiplier), architecture=architecture) as steering:
            assert steering.mode == "hook"
            steered[multiplier] = logits(ours, ids)
        with steer(plain, Setting(chosen, multiplier), mode="fold", architecture=theirs):
            expected = logits(plain, ids)
        gaps.append(gap(steered[multiplier], expected))
        assert gap(expected, untouched) > max(0.5, 4 * tolerance), "the test would not notice a model left alone"
    with steer(ours, Setting(added, 2.0), architecture=architecture):
        one = logits(ours, ids)
    with steer(plain, Setting(added, 2.0), architecture=theirs):
        gaps.append(gap(one, logits(plain, ids)))
    settings = [Setting(chosen, 0.0), Setting(), Setting(added, 2.0)]
    if name == "bitsandbytes-8bit":
        with pytest.raises(SteeringError, match=r"cannot steer rows: LLM\.int8 keeps channels in 16 bits by what any"):
            RowSteering(ours, settings, architecture)
    else:
        with RowSteering(ours, settings, architecture) as rows:
            rows.assign([0, 1, 2])
            mixed = logits(ours, ids)
        gaps.append(gap(mixed, torch.stack([steered[0.0][0], logits(ours, ids)[1], one[2]])))
    with pytest.raises(SteeringError, match=r"cannot fold: .* is quantized \(.*\), and its columns are packed"):
        steer(ours, Setting(chosen, 0.0), mode="fold", architecture=architecture).__enter__()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in ours.modules())
    assert max(gaps) <= tolerance
    largest[name] = max(largest.get(name, 0.0), *gaps)
    record.setdefault(type(ours).__name__, {})[name] = True


def test_discovery_is_that_of_the_dequantized_model(name: str, tmp_path: Path) -> None:
    ours, plain = load(saved(tmp_path / "tiny", name), name)
    settings = Settings(batch_size=1)
    first, second = (
        measure(model, byte_tokenizer(), CONTRAST, universal_filter=False, check_leakage=False, settings=settings)
        for model in (ours, plain)
    )
    assert first.means.neurons is not None and second.means.neurons is not None
    tolerance = FORMATS[name].allowed()
    assert gap(first.means.neurons, second.means.neurons) <= tolerance
    mine, theirs = (cna.find(found, fraction=0.1) for found in (first, second))
    common = {n[:2] for n in mine.neurons} & {n[:2] for n in theirs.neurons}
    assert len(common) >= len(theirs.neurons) * (1.0 if tolerance < 0.01 else 0.9)
    assert gap(caa.find(first).tensors[0], caa.find(second).tensors[0]) <= tolerance


def test_columns_are_not_verified_and_it_says_so(name: str, tmp_path: Path) -> None:
    ours, plain = load(saved(tmp_path / "tiny", name), name)
    packed, float32 = find_architecture(ours), find_architecture(plain)
    base = circuit(packed)
    named = [(neuron.layer, neuron.index) for neuron in base.neurons]

    def found_on(architecture: Any) -> Circuit:
        return base.model_copy(update={"model": describe_model(architecture, named, id="a/b", revision=None)})

    def warned(intervention: Circuit) -> tuple[str, ...]:
        return fit_warnings(intervention, packed, revision=None, chat_template_sha256=None)

    here = found_on(packed)
    assert here.model.columns_sha256 is None and here.model.dtype is not None and " of " in here.model.dtype
    (warning,) = warned(here)
    assert warning == f"weights: not verified, since {here.model.dtype} has no columns to compare"
    (warning,) = warned(found_on(float32))
    assert warning.startswith("dtype: the circuit was found in float32, this is") and "cannot be compared" in warning
    here.write(tmp_path / "circuit.json")
    assert read_intervention(tmp_path / "circuit.json") == here


def test_two_checkpoints_of_one_shape_have_two_fingerprints(name: str, tmp_path: Path) -> None:
    """Else a response store would give one model's answers for the other's."""
    first, again, other = (load(saved(tmp_path / str(n), name, seed=n // 2), name)[0] for n in (0, 1, 2))
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)


def test_cna_hf_loads_what_was_saved_quantized(name: str, tmp_path: Path) -> None:
    ours, _ = load(saved(tmp_path / "tiny", name), name)
    ours.save_pretrained(tmp_path / "saved")
    byte_tokenizer().save_pretrained(tmp_path / "saved")
    lm = CNAHFLM(pretrained=str(tmp_path / "saved"), device="cpu")
    assert lm.weights_sha256 == weights_sha256(ours)
    ids = torch.arange(5, 20)[None]
    assert gap(logits(lm.model, ids), logits(ours, ids)) == 0.0
    lm.steer(Setting(circuit(lm.architecture, per_layer=16), 0.0))
    assert lm.mode_in_use == "hook" and len(lm.fingerprint) == 64
    assert gap(logits(lm.model, ids), logits(ours, ids)) > 0.5
    lm.unsteer()
    assert gap(logits(lm.model, ids), logits(ours, ids)) == 0.0


@pytest.mark.parametrize(
    "asked",
    [
        {"load_in_4bit": True},
        {"load_in_8bit": True, "llm_int8_threshold": 5.0},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ],
    ids=["4 bits", "8 bits", "as a mapping"],
)
def test_cna_hf_quantizes_while_it_loads(asked: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason=MISSING)
    checkpoint = str(save_llama(tmp_path / "tiny"))
    lm, plain = (CNAHFLM(pretrained=checkpoint, device="cpu", **more) for more in (asked, {}))
    assert type(lm.model.model.layers[0].mlp.down_proj.weight).__name__ in ("Params4bit", "Int8Params")
    assert lm.fingerprint != plain.fingerprint


def test_a_setting_that_moves_the_answers_is_in_the_fingerprint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason=MISSING)
    checkpoint = str(save_llama(tmp_path / "tiny"))
    found = [
        CNAHFLM(pretrained=checkpoint, device="cpu", load_in_8bit=True, llm_int8_threshold=threshold)
        for threshold in (6.0, 6.0, 5.0)
    ]
    assert len({lm.weights_sha256 for lm in found}) == 1
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint


def test_a_config_of_transformers_is_taken_too(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=MISSING)
    lm = CNAHFLM(
        pretrained=str(save_llama(tmp_path / "tiny")),
        device="cpu",
        quantization_config=FORMATS["torchao-int8"].config(),
    )
    assert type(lm.model.model.layers[0].mlp.down_proj.weight).__name__ == "Int8Tensor"
    assert len(lm.fingerprint) == 64


def test_rows_of_8_bits_are_steered_where_no_row_looks_at_another(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason=MISSING)
    checkpoint = str(save_llama(tmp_path / "tiny"))
    lm = CNAHFLM(pretrained=checkpoint, device="cpu", load_in_8bit=True, llm_int8_threshold=0.0)
    chosen, ids = circuit(lm.architecture, per_layer=16), prompts()
    with RowSteering(lm.model, [Setting(), Setting(chosen, 0.0), Setting(chosen, 2.0)], lm.architecture) as rows:
        rows.assign([0, 1, 2])
        mixed = logits(lm.model, ids)
    for row, multiplier in enumerate((1.0, 0.0, 2.0)):
        with steer(lm.model, Setting(chosen, multiplier), mode="hook"):
            assert gap(mixed[row], logits(lm.model, ids)[row]) == 0.0


def test_two_quantizations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two quantizations; got \['quantization_config', 'load_in_4bit'\]"):
        CNAHFLM(pretrained="x/y", device="cpu", load_in_4bit=True, quantization_config={"quant_method": "x"})
    with pytest.raises(ConfigError, match=r"quantization: .* got \{'bits': 4\}"):
        CNAHFLM(pretrained="x/y", device="cpu", quantization_config={"bits": 4})


def test_a_quantizer_that_keeps_no_weight_of_that_name() -> None:
    """As GPTQ and AWQ do: packed numbers under names of their own; the libraries need not be installed for this."""

    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.scales = torch.nn.Buffer(linear.weight.detach().abs().amax(1, keepdim=True) / 127)
            self.qweight = torch.nn.Buffer((linear.weight.detach() / self.scales).round().to(torch.int8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.qweight.float() * self.scales)

    ours, plain = tiny("llama"), tiny("llama")
    for mine, theirs in zip(ours.model.layers, plain.model.layers, strict=True):
        mine.mlp.down_proj = Packed(mine.mlp.down_proj)
        theirs.mlp.down_proj.weight.data = mine.mlp.down_proj.qweight.float() * mine.mlp.down_proj.scales
    architecture, ids = find_architecture(ours), prompts()
    chosen = circuit(architecture, per_layer=16)
    for multiplier in (0.0, 2.0):
        with steer(ours, Setting(chosen, multiplier)) as steering, steer(plain, Setting(chosen, multiplier)) as folded:
            assert (steering.mode, folded.mode) == ("hook", "fold")
            assert gap(logits(ours, ids), logits(plain, ids)) < 1e-5
    with pytest.raises(SteeringError, match=r"is quantized \(Packed\)"):
        steer(ours, Setting(chosen, 0.0), mode="fold").__enter__()
    info = describe_model(architecture, [(0, 1)], id=None, revision=None)
    assert (info.dtype, info.columns_sha256, info.mlp_width) == ("Packed", None, 48)
    assert weights_sha256(ours) != weights_sha256(plain)
