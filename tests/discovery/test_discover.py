"""Discovery against the slow independent version, on every architecture, whatever the batch size."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.loading import load_universal_prompts
from lm_eval_cna.discovery.controls import draw_neurons
from lm_eval_cna.discovery.discover import discover
from lm_eval_cna.discovery.measurement import Measurement, Settings, measure
from lm_eval_cna.discovery.methods import caa, caa_residual, cna, top_activation
from lm_eval_cna.errors import ArchitectureError, CNAError, ConfigError, ContrastError, InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.transformer.prompts import Rendering, encode_prompts, render_prompts
from tests.helpers.models import DENSE, TINY, letters, tiny
from tests.reference import attribution as reference

FRACTION = 0.1  # 14 of 144 neurons
NO_PROMPTS: dict[str, Any] = {"contrast": None}


tokenizer = pytest.fixture(letters, scope="module", name="tokenizer")


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    """Five and six prompts of 3 to 60 characters."""
    draw = random.Random(1)
    texts = [
        "".join(chr(draw.randrange(33, 120)) for _ in range(length))
        for length in (3, 8, 14, 33, 60, 5, 9, 20, 21, 40, 55)
    ]
    return ContrastSet("made-up", tuple(texts[:5]), tuple(texts[5:]), leakage="made up, nothing to leak into")


@pytest.fixture(scope="module")
def circuit(tokenizer: Any, contrast: ContrastSet) -> Circuit:
    """Found on the tiny Llama."""
    found = discover(tiny("llama"), tokenizer, contrast, fraction=0.05)
    assert isinstance(found, Circuit)
    return found


def ids(prompts: tuple[str, ...], tokenizer: Any) -> list[list[int]]:
    return encode_prompts(render_prompts(prompts, tokenizer), tokenizer)


@pytest.mark.parametrize("family", DENSE)
def test_equals_the_reference_for_every_batch_size(
    family: str, tokenizer: Any, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TINY[family]()
    diverse = load_universal_prompts()[::4]  # 13 of them: the reference takes them one at a time
    monkeypatch.setattr("lm_eval_cna.discovery.measurement.load_universal_prompts", lambda: diverse)
    positive, negative = ids(contrast.positive, tokenizer), ids(contrast.negative, tokenizer)
    left_out = reference.universal(model, family, ids(diverse, tokenizer), FRACTION)
    expected = reference.circuit(model, family, positive, negative, FRACTION, left_out)
    writes, residual = reference.differences(model, family, positive, negative)
    strongest = reference.most_active(model, family, positive + negative, FRACTION, left_out, excluded_layers=(1,))
    for batch_size in (1, 3, 16):
        found = measure(
            model,
            tokenizer,
            contrast,
            read=("neurons", "magnitudes", "writes", "blocks"),
            universal_fraction=FRACTION,
            settings=Settings(batch_size=batch_size),
        )
        circuit = cna.find(found, fraction=FRACTION)
        assert set(found.universal) == left_out
        assert [(n.layer, n.index) for n in circuit.neurons] == [(layer, index) for layer, index, _ in expected]
        deltas = [n.delta for n in circuit.neurons]
        assert deltas == pytest.approx([delta for *_, delta in expected], abs=1e-5)
        strong = top_activation.find(found, fraction=FRACTION, excluded_layers=(1,))
        assert [(n.layer, n.index) for n in strong.neurons] == strongest
        assert all(n.delta is None for n in strong.neurons)
        vectors = caa.find(found)
        assert vectors.layers == (0, 1, 2) and vectors.place == "write"
        torch.testing.assert_close(torch.stack(list(vectors.tensors.values())), torch.tensor(writes), atol=1e-5, rtol=0)
        for layer in range(3):
            vector = caa_residual.find(found, layer=layer).tensors[layer]
            torch.testing.assert_close(vector, torch.tensor(residual[layer]), atol=1e-5, rtol=0)


def test_some_architecture_has_universal_neurons(tokenizer: Any, contrast: ContrastSet) -> None:
    """Else the comparison above would compare two empty filters."""
    found = measure(tiny("llama"), tokenizer, contrast, universal_fraction=FRACTION)
    assert found.universal
    unfiltered = cna.find(measure(tiny("llama"), tokenizer, contrast, universal_filter=False), top_k=144)
    filtered = cna.find(found, top_k=144 - len(found.universal))
    kept = [n for n in unfiltered.neurons if (n.layer, n.index) not in found.universal]
    assert [n[:2] for n in filtered.neurons] == [n[:2] for n in kept]


def test_header_says_how_it_was_found(tokenizer: Any, contrast: ContrastSet, tmp_path: Any) -> None:
    model = tiny("llama")
    circuit = discover(
        model, tokenizer, contrast, fraction=0.05, excluded_layers=(0,), model_id="me/tiny", revision="abc"
    )
    assert isinstance(circuit, Circuit)
    info, made_on = circuit.discovery, circuit.model
    assert (info.contrast, info.positive, info.negative, info.contrast_sha256) == ("made-up", 5, 6, contrast.sha256)
    assert (info.fraction, info.top_k, info.excluded_layers) == (0.05, 7, (0,))
    assert info.universal_filter is not None and info.universal_filter.fraction == 0.05
    assert info.universal_filter.prompts >= 40
    assert info.leakage == "made up, nothing to leak into" and info.chat_template_sha256 is not None
    assert info.versions["torch"] == torch.__version__ and info.created and info.created.endswith("+00:00")
    assert (made_on.id, made_on.revision, made_on.num_layers, made_on.mlp_width) == ("me/tiny", "abc", 3, 48)
    assert made_on.columns_sha256 is not None and 0 not in circuit.layers
    circuit.write(tmp_path / "c.json")
    assert read_intervention(tmp_path / "c.json") == circuit
    plain = discover(model, tokenizer, contrast, settings=Settings(Rendering(chat_template=False)))
    assert plain.discovery.chat_template_sha256 is None


def test_rendering_reaches_the_model(tokenizer: Any, contrast: ContrastSet) -> None:
    model = tiny("llama")
    templated = discover(model, tokenizer, contrast, method="caa")
    plain = discover(model, tokenizer, contrast, method="caa", settings=Settings(Rendering(chat_template=False)))
    assert templated.sha256 != plain.sha256
    drawn, again, other = (
        discover(model, tokenizer, None, method="random-vectors", like=plain, seed=seed) for seed in (1, 1, 2)
    )
    assert drawn.layers == plain.layers and again.sha256 == drawn.sha256 != other.sha256


def test_caa_residual_layer(tokenizer: Any, contrast: ContrastSet) -> None:
    chosen = discover(tiny("llama"), tokenizer, contrast, method="caa-residual")
    assert isinstance(chosen, Vectors)
    assert chosen.place == "block" and len(chosen.layers) == 1 and chosen.layers[0] < 2  # never the last fifth
    assert chosen.discovery.layer == chosen.layers[0]
    given = discover(tiny("llama"), tokenizer, contrast, method="caa-residual", layer=2)
    assert given.layers == (2,)
    with pytest.raises(ConfigError, match=r"layer; got 3; allowed: 0 to 2"):
        discover(tiny("llama"), tokenizer, contrast, method="caa-residual", layer=3)


def test_random_controls(tokenizer: Any, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    circuit = discover(model, tokenizer, contrast, fraction=0.05)
    matched = discover(model, tokenizer, contrast, method="random", like=circuit, seed=3, match="activation")
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", None)
        patch.setattr(type(model.model), "forward", None)  # no forward pass is needed for this one
        uniform = discover(model, tokenizer, None, method="random", like=circuit, seed=3)
    assert isinstance(circuit, Circuit) and isinstance(uniform, Circuit) and isinstance(matched, Circuit)
    universal = circuit.discovery.universal_filter
    assert universal is not None
    forbidden = {n[:2] for n in circuit.neurons} | set(universal.neurons)
    for drawn, match in ((uniform, "layer"), (matched, "activation")):
        assert [n.layer for n in drawn.neurons] == [n.layer for n in circuit.neurons]
        assert not {n[:2] for n in drawn.neurons} & forbidden
        info = drawn.discovery
        assert (info.seed, info.match, info.like_sha256) == (3, match, circuit.sha256)
        assert drawn.model.columns_sha256 != circuit.model.columns_sha256
    assert {n[:2] for n in uniform.neurons} != {n[:2] for n in matched.neurons}


@pytest.mark.parametrize(("third", "layer"), [("bottom", 0), ("middle", 1), ("top", 2)])
def test_controls_of_a_third_of_the_layers(tokenizer: Any, circuit: Circuit, third: Any, layer: int) -> None:
    model = tiny("llama")
    assert circuit.discovery.universal_filter is not None
    drawn = discover(model, tokenizer, None, method="random", like=circuit, seed=3, match=third)
    assert isinstance(drawn, Circuit) and drawn.method == "random" and drawn.layers == (layer,)
    assert len(drawn.neurons) == len(circuit.neurons) and drawn.name == f"made-up-random-3-{third}"
    assert (drawn.discovery.match, drawn.discovery.seed) == (third, 3)
    forbidden = {n[:2] for n in circuit.neurons} | set(circuit.discovery.universal_filter.neurons)
    assert not {n[:2] for n in drawn.neurons} & forbidden
    # Prefixes are nested: the control does not change with what is drawn after it.
    whole = draw_neurons(model, circuit, seed=3, match=third)
    assert whole.prefix(3).neurons == drawn.neurons[:3] and whole.sha256 == drawn.sha256


def test_top_activation_like_a_circuit(tokenizer: Any, contrast: ContrastSet) -> None:
    model = tiny("llama")
    circuit = discover(model, tokenizer, contrast, top_k=7, excluded_layers=(0,))
    unlike = discover(model, tokenizer, contrast, method="top-activation", top_k=7, excluded_layers=(0,))
    found = discover(model, tokenizer, contrast, method="top-activation", like=circuit)
    assert isinstance(found, Circuit) and found.sha256 == unlike.sha256 != circuit.sha256
    assert found.discovery.universal_filter == circuit.discovery.universal_filter
    assert found.discovery.like_sha256 == circuit.sha256 and 0 not in found.layers
    unfiltered = discover(model, tokenizer, contrast, top_k=7, universal_filter=False)
    bare = discover(model, tokenizer, contrast, method="top-activation", like=unfiltered)
    assert bare.discovery.universal_filter is None and bare.sha256 != found.sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "abc"}, "method; got 'abc'"),
        ({"fraction": 0.1, "top_k": 3}, "one size"),
        ({"top_k": 0}, "circuit size; got 0"),
        ({"method": "random"}, r"matched to an intervention.*a circuit"),
        ({"method": "random-vectors", "like": "CIRCUIT"}, r"matched to an intervention.*got 'cna'.*vectors"),
        (NO_PROMPTS | {"method": "random", "like": "CIRCUIT", "match": "activation"}, "controls need a contrast set"),
        (
            NO_PROMPTS | {"method": "random", "like": "CIRCUIT", "match": "low"},
            r"match; got 'low'; allowed: layer, act",
        ),
        (NO_PROMPTS, "cna needs a contrast set"),
        (NO_PROMPTS | {"method": "top-activation"}, "top-activation needs a contrast set"),
        ({"method": "top-activation", "like": "CIRCUIT", "top_k": 5}, "gives size and layers itself"),
        ({"layer": 1}, "layer has no meaning for method cna"),
        ({"like": "CIRCUIT"}, "like has no meaning for method cna"),
    ],
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], message: str, tokenizer: Any, contrast: ContrastSet, circuit: Circuit
) -> None:
    arguments = {"contrast": contrast, **arguments}
    if "like" in arguments:
        arguments["like"] = circuit
    with pytest.raises(ConfigError, match=message):
        discover(tiny("llama"), tokenizer, **arguments)


def test_models_and_prompts_that_are_refused(tokenizer: Any, contrast: ContrastSet, circuit: Circuit) -> None:
    upper = discover(tiny("llama"), tokenizer, contrast, top_k=5, excluded_layers=(0,))
    with pytest.raises(ConfigError, match="0 layers to draw from"):
        discover(tiny("llama"), tokenizer, None, method="random", like=upper, match="bottom")
    wider = circuit.model_copy(update={"model": circuit.model.model_copy(update={"mlp_width": 64})})
    with pytest.raises(InterventionError, match="made for"):
        discover(tiny("llama"), tokenizer, None, method="random", like=wider)
    with pytest.raises(ArchitectureError, match="mixture-of-experts"):
        discover(TINY["granitemoe"](), tokenizer, contrast)
    long = ContrastSet("long", ("x" * 300,), ("y",), leakage="none")
    with pytest.raises(ContrastError, match="longer than the model can read; got '305 tokens'; allowed: up to 256"):
        discover(tiny("gpt2"), tokenizer, long)
    with pytest.raises(ConfigError, match="writes were not read"):
        caa.find(measure(tiny("llama"), tokenizer, contrast, read=("neurons",)))


def test_nan_weights_name_the_layer(tokenizer: Any, contrast: ContrastSet) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[7].fill_(float("nan"))
    with pytest.raises(CNAError, match="activations of layer 1 are not finite"):
        discover(model, tokenizer, contrast)
    with pytest.raises(CNAError, match="activations of layer 1 are not finite"):
        discover(model, tokenizer, contrast, universal_filter=False)


def test_hooks_are_removed_and_dropout_is_off_also_after_an_error(tokenizer: Any, contrast: ContrastSet) -> None:
    model = tiny("gpt2")
    model.train()
    expected = discover(tiny("gpt2"), tokenizer, contrast)
    assert discover(model, tokenizer, contrast).sha256 == expected.sha256
    assert all(module.training for module in model.modules())

    def stop(stage: str, done: int, total: int, detail: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        discover(model, tokenizer, contrast, settings=Settings(progress=stop))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(module.training for module in model.modules())


def test_lora_is_read_at_the_wrapper(tokenizer: Any, contrast: ContrastSet) -> None:
    """An adapter on the down-projection does not change its input; one on the gate does, and discovery sees it."""
    peft = pytest.importorskip("peft")
    expected = discover(tiny("llama"), tokenizer, contrast, top_k=9)
    for target, same in (("down_proj", True), ("gate_proj", False)):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=[target], layers_to_transform=[2], init_lora_weights=False)
        wrapped = peft.get_peft_model(tiny("llama"), config).eval()
        found = discover(wrapped, tokenizer, contrast, top_k=9)
        assert (found.neurons == expected.neurons) is same  # type: ignore[union-attr]


def test_bfloat16_means_stay_float64(tokenizer: Any, contrast: ContrastSet) -> None:
    found = measure(tiny("llama", dtype=torch.bfloat16), tokenizer, contrast)
    assert isinstance(found, Measurement)
    assert found.means.neurons is not None and found.means.neurons.dtype == torch.float64
    assert cna.find(found, fraction=0.05).model.dtype == "bfloat16"
