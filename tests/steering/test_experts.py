"""Mixtures of experts, every family we claim, against loops over tokens and experts written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lm_eval_cna.discovery.activations import count_in_top, mean_activations
from lm_eval_cna.errors import ArchitectureError, CNAError, InterventionError, SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import columns_sha256, named_columns, shape_of
from lm_eval_cna.steering.apply import apply, steer
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.experts import routed_activations
from lm_eval_cna.transformer.neurons import SHARED, Neuron
from tests.helpers.by_hand import scaled_by_hand
from tests.helpers.interventions import circuit, spread, vectors
from tests.helpers.models import MIXTURES, left_unchanged, logits, prompts, tiny
from tests.reference import mixture as by_hand

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", MIXTURES)
def test_recorded_activations_are_those_of_a_loop_by_hand(family: str, implementation: str) -> None:
    model, ids = tiny(family), prompts(batch=4, length=7)
    model.set_experts_implementation(implementation)
    architecture = find_architecture(model)
    rows = [[int(token) for token in row[: 7 - cut]] for row, cut in zip(ids, (0, 2, 3, 5), strict=True)]  # padded
    expected = torch.zeros(4, architecture.num_neurons)
    with torch.no_grad():
        for number, row in enumerate(rows):
            mlps = [layer.mlp for layer in model.model.layers]
            for layer, (mlp, hidden) in enumerate(
                zip(mlps, by_hand.inputs_of(model, torch.tensor([row]), mlps), strict=True)
            ):
                token = hidden[0, -1]
                start = architecture.layout.of_layer(layer).start
                if not hasattr(mlp, "experts"):
                    inner = nn.functional.silu(mlp.gate_proj(token)) * mlp.up_proj(token)
                    expected[number, start : start + len(inner)] = inner
                    continue
                width = architecture.layers[layer].projections[0].width
                for expert in by_hand.visited(mlp, token)[0]:
                    at = start + expert * width
                    expected[number, at : at + width] = by_hand.activation(mlp, expert, token)
                if hasattr(mlp, "shared_expert"):
                    at = start + mlp.experts.num_experts * width
                    inner = by_hand.shared_activation(mlp, token)
                    expected[number, at : at + len(inner)] = inner
    found = mean_activations(architecture, rows, [0, 1, 1, 0], read=("neurons", "magnitudes"), batch_size=3)
    assert found.neurons is not None and found.magnitudes is not None
    halves = torch.stack((expected[[0, 3]].mean(0), expected[[1, 2]].mean(0))).double()
    difference = (found.neurons - halves).abs().max().item()
    print(f"MoE agreement: {family} {implementation}: activations {difference:.1e} of {halves.abs().max():.2f}")
    assert difference < 4e-6
    torch.testing.assert_close(found.magnitudes, expected.abs().mean(0).double(), atol=4e-6, rtol=0)
    assert (found.neurons == 0).float().mean() > 0.05, "experts that nobody visits have zero means"
    counts = count_in_top(architecture, rows, 30, batch_size=2)
    top = torch.zeros(architecture.num_neurons, dtype=torch.int32)
    for row in expected:
        top[row.abs().topk(30).indices] += 1
    assert torch.equal(counts, top)


@pytest.mark.parametrize("multiplier", [0.0, 0.5, 2.0, -1.0])
@pytest.mark.parametrize("family", MIXTURES)
def test_fold_and_hook_are_scaling_by_hand(family: str, multiplier: float) -> None:
    model, ids = tiny(family), prompts(batch=2, length=6)
    architecture = find_architecture(model)
    chosen = spread(architecture)
    untouched = logits(model, ids)
    with scaled_by_hand(model, chosen, 1.0):
        assert torch.allclose(logits(model, ids), untouched, atol=2e-5, rtol=0), "the loop by hand is the model"
    with scaled_by_hand(model, chosen, multiplier):
        expected = logits(model, ids)
    assert (expected - untouched).abs().max() > 1e-2, "the circuit must matter for the test to mean anything"
    for implementation in IMPLEMENTATIONS:
        model.set_experts_implementation(implementation)
        plain = logits(model, ids)
        for mode in ("fold", "hook"):
            if mode == "hook" and implementation == "eager":
                with pytest.raises(
                    SteeringError, match=r"cannot hook: the eager implementation of experts .*down_proj"
                ):
                    apply(model, Setting(chosen, multiplier), mode="hook")
                continue
            how: Any = {"mode": mode}
            with left_unchanged(model), steer(model, Setting(chosen, multiplier), **how) as steering:
                assert steering.mode == mode
                difference = (logits(model, ids) - expected).abs().max().item()
            print(f"MoE agreement: {family} {implementation} {mode} m={multiplier}: logits {difference:.1e}")
            assert difference < 2e-5
            assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("family", MIXTURES)
def test_rows_are_refused_with_a_reason_and_vectors_are_not(family: str) -> None:
    model, ids = tiny(family), prompts()
    architecture = find_architecture(model)
    with pytest.raises(SteeringError, match=r"cannot steer rows: layer \d is a mixture of experts.*allowed: .*fold"):
        RowSteering(model, [Setting(), Setting(spread(architecture), 0.0)])
    directions = vectors(architecture)
    settings = [Setting(), Setting(directions, 0.0), Setting(spread(architecture), 1.0)]
    wanted = []
    for setting in settings:
        with steer(model, setting):
            wanted.append(logits(model, ids))
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-3)
    with RowSteering(model, settings) as rows:
        rows.assign([0, 0, 0, 1, 1, 1, 2, 2, 2])
        assert torch.allclose(logits(model, ids.repeat(3, 1)), torch.cat(wanted), atol=1e-5, rtol=0)


def test_rows_of_the_dense_layers_of_a_mixture() -> None:
    model, ids = tiny("qwen2_moe"), prompts()
    dense = Circuit(method="random", name="dense", neurons=tuple(Neuron(1, i) for i in range(20)))
    with steer(model, Setting(dense, 0.0), mode="fold"):
        wanted = logits(model, ids)
    with RowSteering(model, [Setting(dense, 0.0)]) as rows:
        rows.assign([0, 0, 0])
        assert torch.allclose(logits(model, ids), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", MIXTURES)
def test_caa_is_what_the_whole_mlp_writes(family: str) -> None:
    model, ids = tiny(family), prompts(batch=4, length=6)
    architecture = find_architecture(model)
    mlps = [layer.mlp for layer in model.model.layers]
    seen: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen[module] = output[0] if isinstance(output, tuple) else output

    handles = [mlp.register_forward_hook(note) for mlp in mlps]
    base = logits(model, ids)
    expected = torch.stack([seen[mlp][:, -1].mean(0) for mlp in mlps]).double()
    for handle in handles:
        handle.remove()
    found = mean_activations(architecture, ids.tolist(), [0] * 4, read=("writes",)).writes
    assert found is not None
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    with steer(model, Setting(vectors(architecture), 2.0)):
        assert not torch.allclose(logits(model, ids), base, atol=1e-3)
    assert torch.equal(logits(model, ids), base)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_hash_of_columns_sees_experts(family: str) -> None:
    model = tiny(family)
    architecture = find_architecture(model)
    chosen = circuit(architecture)
    places = named_columns(chosen, architecture)
    before = columns_sha256(architecture, places)
    neuron = next(neuron for neuron in chosen.neurons if neuron.expert is not None)
    projection = architecture.projections[neuron.layer, neuron.expert]
    with torch.no_grad():
        projection.weight.select(projection.neuron_dim, neuron.index)[3] += 1e-3
    assert columns_sha256(architecture, places) != before


def test_what_does_not_fit_is_refused() -> None:
    architecture = find_architecture(tiny("qwen2_moe"))
    model = shape_of(architecture)
    for neuron, says in (
        (Neuron(0, 0, None, 5), "neuron 0 of expert 5 of layer 0"),
        (Neuron(0, 40, None, SHARED), "neuron 40 of expert shared of layer 0"),
        (Neuron(0, 0), "neuron 0 of layer 0"),
    ):
        foreign = Circuit(method="random", name="foreign", neurons=(neuron,))
        with pytest.raises(InterventionError, match=f"foreign names {says}; allowed: 2 layers of 5 experts"):
            apply(tiny("qwen2_moe"), Setting(foreign, 0.0))
        with pytest.raises(ValueError, match=r"neurons\.0"):
            Circuit(method="random", name="here", neurons=(neuron,), model=model)
    other = Circuit(method="random", name="o", neurons=(Neuron(0, 0, None, 0),), model=model)
    with pytest.raises(
        InterventionError, match="made for a model of 5 experts of width 24, shared_width 40 in 2 layers"
    ):
        apply(tiny("olmoe"), Setting(other, 0.0))
    with pytest.raises(InterventionError, match="got 'LlamaForCausalLM of no experts'"):
        apply(tiny("llama"), Setting(other, 0.0))


def another_shape(experts: Any) -> Any:
    experts.down_proj = nn.Parameter(torch.zeros(5, 48, 32))


def another_module(experts: Any) -> Any:
    return nn.ModuleList([nn.Linear(2, 2)])


def on_several_devices(experts: Any) -> Any:
    experts._is_expert_parallel = True


def quantized(experts: Any) -> Any:
    experts.down_proj = nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_shape, r"layers\.1\.mlp\.experts \(OlmoeExperts\) .*down_proj is \(5, 48"),
        (another_module, r"layers\.1\.mlp\.experts \(ModuleList\) .*down_proj is missing"),
        (on_several_devices, "spread over several devices"),
        (quantized, r"down_proj is quantized to torch\.float8"),
    ],
)
def test_a_layout_that_is_not_known_is_named(change: Any, message: str) -> None:
    model = tiny("olmoe")
    mlp = model.model.layers[1].mlp
    mlp.experts = change(mlp.experts) or mlp.experts
    with pytest.raises(ArchitectureError, match=message):
        find_architecture(model)


def test_experts_that_change_their_ways_while_hooked_are_caught() -> None:
    model, ids = tiny("mixtral"), prompts()
    chosen = spread(find_architecture(model))
    with steer(model, Setting(chosen, 0.0), mode="hook"):
        model.set_experts_implementation("eager")
        with pytest.raises(SteeringError, match="implementation of experts in hook mode; got 'eager'"):
            logits(model, ids)
    with pytest.raises(CNAError, match="experts of layer 0 were not called"):
        model.model.layers[0].mlp.forward = lambda hidden: hidden
        mean_activations(find_architecture(model), ids.tolist(), [0] * 3)


def test_experts_that_are_not_in_memory_cannot_be_recorded() -> None:
    experts = tiny("olmoe").model.layers[0].mlp.experts.to("meta")
    with pytest.raises(CNAError, match="the experts are offloaded"):
        routed_activations(experts, torch.zeros(1, 32), torch.tensor([[0, 1]]))
