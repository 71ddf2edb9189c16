"""The workers' side of cna-vllm without vLLM: a transformers model whose down-projections are cut as vLLM cuts them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lm_eval_cna.errors import ArchitectureError, SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.models.vllm_engine.plan import check_steered, check_workers, plan_for, resolve_mode
from lm_eval_cna.models.vllm_engine.worker import SteeringWorker, find_parts
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.neurons import Neuron
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import left_unchanged, prompts, tiny


class UnquantizedLinearMethod:
    """vLLM's name for what multiplies with a plain weight."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(x, layer.weight, bias)


class RowParallel(nn.Module):
    """A rank's share of a down-projection; returns (output, bias) as vLLM's does, summed up by `Together`."""

    def __init__(self, linear: nn.Linear, rank: int, size: int, *, reduce_results: bool = True) -> None:
        super().__init__()
        self.tp_rank, self.reduce_results, self.input_is_parallel = rank, reduce_results, True
        self.input_size, self.output_size = linear.in_features, linear.out_features
        self.input_size_per_partition = linear.in_features // size
        start = rank * self.input_size_per_partition
        self.weight = nn.Parameter(linear.weight.detach()[:, start : start + self.input_size_per_partition].clone())
        self.quant_method = UnquantizedLinearMethod()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, x, None)


class Together(nn.Module):
    """All ranks' shares behind one module, so that one process can run the model."""

    def __init__(self, shares: list[RowParallel]) -> None:
        super().__init__()
        self.shares = nn.ModuleList(shares)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(self.shares[0].input_size_per_partition, dim=-1)
        return sum(share(part) for share, part in zip(self.shares, parts, strict=True))


class Ranks:
    """Workers of a tiny model, of which rank r sees its own slices; `logits` runs them together."""

    def __init__(self, size: int, *, family: str = "llama", eager: bool = True) -> None:
        self.model = tiny(family)
        self.whole = tiny(family)
        self.architecture = find_architecture(self.whole)
        together = [Together([RowParallel(mlp.down_proj, r, size) for r in range(size)]) for mlp in mlps(self.model)]
        self.workers = []
        for rank in range(size):
            view = tiny(family)  # what the worker walks; its shares are those of the model that runs
            for mlp, shares in zip(mlps(view), together, strict=True):
                mlp.down_proj = shares.shares[rank]
            worker = SteeringWorker()
            worker.model_runner = SimpleNamespace(get_model=lambda view=view: view)
            worker.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enforce_eager=eager))
            self.workers.append(worker)
        for mlp, shares in zip(mlps(self.model), together, strict=True):
            mlp.down_proj = shares

    def ask(self, method: str, *args: Any) -> list[Any]:
        """What `collective_rpc` does, plain data included."""
        return [
            json.loads(json.dumps(getattr(worker, method)(*json.loads(json.dumps(args))))) for worker in self.workers
        ]

    def logits(self, model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=prompts()).logits


def mlps(model: Any) -> list[Any]:
    return [block.mlp for block in model.model.layers]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("mode", ["fold", "hook"])
@pytest.mark.parametrize("multiplier", [0.0, 0.5, 2.0])
def test_ranks_together_steer_the_circuit(size: int, mode: str, multiplier: float) -> None:
    ranks = Ranks(size)
    setting = Setting(circuit(ranks.architecture, per_layer=16), multiplier)
    plan = plan_for(setting, mode)
    check_workers(ranks.ask("cna_describe"), ranks.architecture)
    with left_unchanged(ranks.model):
        check_steered(ranks.ask("cna_steer", plan), plan)
        with steer(ranks.whole, setting, mode="hook"):
            expected = ranks.logits(ranks.whole)
        assert torch.allclose(ranks.logits(ranks.model), expected, atol=1e-5)
        if mode == "hook":
            assert ranks.ask("cna_uncalled") == [[]] * size
        ranks.ask("cna_unsteer")
    assert torch.allclose(ranks.logits(ranks.model), ranks.logits(ranks.whole), atol=1e-5)


def test_a_second_steering_replaces_the_first() -> None:
    ranks = Ranks(2)
    chosen = circuit(ranks.architecture)
    for multiplier in (0.0, 2.0):
        ranks.ask("cna_steer", plan_for(Setting(chosen, multiplier), "fold"))
    with steer(ranks.whole, Setting(chosen, 2.0), mode="hook"):
        assert torch.allclose(ranks.logits(ranks.model), ranks.logits(ranks.whole), atol=1e-5)


def test_hooks_that_nobody_called_are_named() -> None:
    ranks = Ranks(2)
    chosen = Circuit(method="random", name="x", neurons=(Neuron(1, 0), Neuron(2, 47)))
    ranks.ask("cna_steer", plan_for(Setting(chosen, 0.0), "hook"))
    assert ranks.ask("cna_uncalled") == [[1], [2]]


@pytest.mark.parametrize("place", ["write", "block"])
def test_vectors_are_added_to_sums_and_by_one_rank_to_shares(place: str) -> None:
    for reduced, adding in ((True, 2), (False, 2 if place == "block" else 1)):
        ranks = Ranks(2)
        for worker in ranks.workers:
            for part in find_parts(worker.model_runner.get_model())[2]:
                part.projection.reduce_results = reduced
        plan = plan_for(Setting(vectors(ranks.architecture, place=place), 0.0), "hook")
        check_steered(ranks.ask("cna_steer", plan), plan)
        assert sum(bool(worker.__dict__["cna_calls"]) for worker in ranks.workers) == adding


def test_a_vector_arrives_as_it_was() -> None:
    ranks = Ranks(1)
    chosen = vectors(ranks.architecture)
    plan = json.loads(json.dumps(plan_for(Setting(chosen, 3.0, 0.5), "hook")))
    assert plan["strength"] == 1.0
    for layer, numbers in plan["layers"]:
        assert torch.equal(torch.tensor(numbers), chosen.tensors[layer])


def test_workers_that_are_not_the_model() -> None:
    ranks = Ranks(2)
    answers = ranks.ask("cna_describe")
    with pytest.raises(ArchitectureError, match="own neurons"):
        check_workers(answers[:1], ranks.architecture)
    moved = [
        {**answer, "owned": [[layer, start + 1, stop + 1] for layer, start, stop in answer["owned"]]}
        for answer in answers
    ]
    with pytest.raises(ArchitectureError, match="slices that make up the 48 neurons"):
        check_workers(moved, ranks.architecture)
    with pytest.raises(ArchitectureError, match="has experts"):
        check_workers(answers, find_architecture(tiny("mixtral")))
    with pytest.raises(ArchitectureError, match=r"vLLM built \[2\] layers"):
        check_workers([{**answers[0], "num_layers": 2}] * 2, ranks.architecture)
    with pytest.raises(ArchitectureError, match="of an unknown kind"):
        check_workers([{"error": "of an unknown kind"}], ranks.architecture)
    check_workers([*answers, answers[0]], ranks.architecture)  # a replica


def test_a_partial_steering_is_refused() -> None:
    ranks = Ranks(2)
    plan = plan_for(Setting(circuit(ranks.architecture, per_layer=16), 0.0), "hook")
    answers = ranks.ask("cna_steer", plan)
    check_steered(answers, plan)
    with pytest.raises(SteeringError, match="layer 0: the workers steered"):
        check_steered(answers[:1], plan)
    with pytest.raises(SteeringError, match="layer 2: the workers steered 0 neurons"):
        check_steered([{**a, "touched": [t for t in a["touched"] if t[0] < 2]} for a in answers], plan)
    with pytest.raises(SteeringError, match="no room"):
        check_steered([{"error": "no room", "touched": []}], plan)


def test_models_that_are_not_known() -> None:
    worker = SteeringWorker()
    worker.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enforce_eager=True))
    worker.model_runner = SimpleNamespace(get_model=lambda: nn.Linear(2, 2))
    assert "0 decoder stacks" in worker.cna_describe()["error"]
    plain = tiny("llama")  # its down-projections are not row-parallel
    worker.model_runner = SimpleNamespace(get_model=lambda: plain)
    assert "is a Linear" in worker.cna_describe()["error"]
    assert "is a Linear" in worker.cna_steer({"layers": []})["error"]


def test_layers_of_other_pipeline_stages_are_not_ours() -> None:
    class PPMissingLayer(nn.Identity):
        pass

    ranks = Ranks(1)
    view = ranks.workers[0].model_runner.get_model()
    view.model.layers[1] = PPMissingLayer()
    name, depth, parts = find_parts(view)
    assert (name, depth, [part.index for part in parts]) == ("LlamaForCausalLM", 3, [0, 2])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda down: setattr(down, "cpu_linear", print), "on a CPU"),
        (lambda down: setattr(down, "quant_method", object()), "quantized"),
        (lambda down: setattr(down, "weight", nn.Parameter(torch.empty(0))), "form of its own"),
    ],
)
def test_weights_that_cannot_be_folded(change: Any, why: str) -> None:
    ranks = Ranks(1)
    change(mlps(ranks.workers[0].model_runner.get_model())[1].down_proj)
    answers = ranks.ask("cna_describe")
    chosen = circuit(ranks.architecture)
    assert resolve_mode(answers, chosen, "auto") == "hook"
    with pytest.raises(SteeringError, match=why):
        resolve_mode(answers, chosen, "fold")
    assert why in ranks.ask("cna_steer", plan_for(Setting(chosen, 0.0), "fold"))[0]["error"]


def test_a_layer_that_computes_with_another_copy() -> None:
    ranks = Ranks(1)
    down = mlps(ranks.workers[0].model_runner.get_model())[0].down_proj
    packed = down.weight.detach().clone()
    down.quant_method.apply = lambda layer, x, bias: nn.functional.linear(x, packed)
    answer = ranks.ask("cna_steer", plan_for(Setting(circuit(ranks.architecture), 0.0), "fold"))[0]
    assert "another copy" in answer["error"]
    assert torch.equal(down.weight, packed)


def test_compiled_engines_fold_and_never_hook() -> None:
    ranks = Ranks(2, eager=False)
    answers = ranks.ask("cna_describe")
    assert resolve_mode(answers, circuit(ranks.architecture), "auto") == "fold"
    for chosen, mode in ((circuit(ranks.architecture), "hook"), (vectors(ranks.architecture), "auto")):
        with pytest.raises(SteeringError, match="enforce_eager"):
            resolve_mode(answers, chosen, mode)  # type: ignore[arg-type]
    with pytest.raises(SteeringError, match="vectors are no weights"):
        resolve_mode(answers, vectors(ranks.architecture), "fold")
