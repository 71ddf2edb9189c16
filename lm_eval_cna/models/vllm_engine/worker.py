"""The worker's side of cna-vllm: methods that vLLM adds to each of its workers and calls by name.

It runs in the engine's processes and imports neither lm-eval nor vLLM; arguments and answers are plain data. A worker
holds a slice of each down-projection's input and, under pipeline parallelism, some of the layers. Errors are returned
in the answer: an exception would leave the other workers steered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import ArchitectureError, CNAError, SteeringError
from lm_eval_cna.steering.fold import fold_columns
from lm_eval_cna.steering.hooks import adder, local_neurons, scaler
from lm_eval_cna.transformer.families import FAMILIES, Family


@dataclass(frozen=True)
class WorkerLayer:
    """What a worker owns of one decoder layer."""

    index: int
    """The layer, from 0."""
    block: nn.Module
    """The decoder layer; its output is (hidden states, residual) or their sum."""
    write: nn.Module
    """The module whose output is added to the residual stream."""
    down: nn.Module
    """The down-projection as the model calls it, a LoRA wrapper included."""
    writes_share: bool = False
    """Whether `write` gives only this worker's share of a sum over workers."""

    @property
    def projection(self) -> nn.Module:
        """The down-projection without a LoRA wrapper."""
        inner = getattr(self.down, "base_layer", None)
        return inner if isinstance(inner, nn.Module) else self.down

    @property
    def owned(self) -> range:
        """The neurons of the layer that this worker computes."""
        module: Any = self.projection
        start = module.tp_rank * module.input_size_per_partition
        return range(start, start + module.input_size_per_partition)

    @property
    def adds(self) -> bool:
        """Whether this worker adds vectors to the MLP's output.

        If every worker has the sum, all of them do; if each has a share of it (Falcon), only the first one does.
        """
        module: Any = self.projection
        return not self.writes_share or module.tp_rank == 0

    @property
    def why_not_fold(self) -> str | None:
        """The reason why the weight cannot be edited in place, or None."""
        module: Any = self.projection
        weight = getattr(module, "weight", None)
        method = type(getattr(module, "quant_method", None)).__name__
        if module is not self.down:
            return "the down-projections carry a LoRA adapter"
        if method != "UnquantizedLinearMethod":
            return f"the down-projections are quantized ({method})"
        if hasattr(module, "cpu_linear"):
            return "on a CPU, vLLM computes with packed copies of the weights"
        if not isinstance(weight, torch.Tensor) or list(weight.shape) != [module.output_size, len(self.owned)]:
            return "vLLM keeps a down-projection in a form of its own"
        return None

    def fold(self, indices: list[int], multiplier: float) -> Callable[[], Any]:
        """Scale columns of the weight in place; returns a function that puts them back.

        Neurons are counted from the start of this worker's slice.

        Raises:
            SteeringError: the weight cannot be edited, or the layer computes with another copy of it.
        """
        if self.why_not_fold is not None:
            raise SteeringError(f"cannot fold: {self.why_not_fold}")
        module: Any = self.projection
        undo = fold_columns(module.weight.data, 1, indices, multiplier)
        one_neuron = module.weight.new_zeros(1, len(self.owned))
        one_neuron[0, indices[0]] = 1
        if not torch.equal(module.quant_method.apply(module, one_neuron, None)[0], module.weight[:, indices[0]]):
            undo()
            raise SteeringError("cannot fold: vLLM computes with another copy of the weights")
        return undo


class SteeringWorker:
    """Methods that vLLM adds to its worker class, and that `collective_rpc` calls by name."""

    model_runner: Any
    vllm_config: Any

    def cna_describe(self) -> dict[str, Any]:
        """What this worker owns and how it can be steered."""
        try:
            name, depth, parts = find_parts(self.model_runner.get_model())
        except CNAError as error:
            return {"error": str(error)}
        eager = bool(self.vllm_config.model_config.enforce_eager)
        return {
            "error": None,
            "name": name,
            "num_layers": depth,
            "owned": [[part.index, part.owned.start, part.owned.stop] for part in parts],
            "why_not_fold": next(filter(None, (part.why_not_fold for part in parts)), None),
            "why_not_hook": None if eager else "compiled models and CUDA graphs skip hooks; give enforce_eager=True",
        }

    def cna_steer(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Steer what this worker owns as `plan_for` says, until `cna_unsteer`.

        Returns:
            {"error": message or None, "touched": [[layer, first neuron, end, neurons steered]]}
        """
        self.cna_unsteer()
        calls: dict[int, int] = {}
        undo: list[Callable[[], Any]] = []
        self.__dict__["cna_calls"], self.__dict__["cna_undo"] = calls, undo
        try:
            _, _, parts = find_parts(self.model_runner.get_model())
            touched = []
            for part in parts:
                for layer, numbers in plan["layers"]:
                    if layer == part.index:
                        count = _touch(part, plan, numbers, undo, calls)
                        touched.append([layer, part.owned.start, part.owned.stop, count])
        except CNAError as error:
            self.cna_unsteer()
            return {"error": str(error), "touched": []}
        return {"error": None, "touched": touched}

    def cna_unsteer(self) -> None:
        """Put everything back, bit for bit."""
        undo: list[Callable[[], Any]] = self.__dict__.get("cna_undo", [])
        while undo:
            undo.pop()()
        self.__dict__.get("cna_calls", {}).clear()

    def cna_uncalled(self) -> list[int]:
        """The layers whose hooks have not been called since `cna_steer`."""
        return sorted(layer for layer, count in self.__dict__.get("cna_calls", {}).items() if not count)


def find_parts(model: nn.Module) -> tuple[str, int, list[WorkerLayer]]:
    """A vLLM model's class name, its number of layers, and the layers that this process owns.

    Raises:
        ArchitectureError: the model is of no known family, or a layer does not match its family.
    """
    stacks = [
        (module, family, layers)
        for module in model.modules()
        if (family := FAMILIES.get(str(getattr(getattr(module, "config", None), "model_type", ""))))
        and isinstance(layers := getattr(module, family.layers, None), nn.ModuleList)
    ]
    name = type(model).__name__
    if len(stacks) != 1:
        raise ArchitectureError(
            f"{len(stacks)} decoder stacks of a known family in vLLM's {name}",
            allowed="one, of the model types " + ", ".join(sorted(FAMILIES)),
        )
    _, family, layers = stacks[0]
    parts = [
        _part(index, block, family, name)
        for index, block in enumerate(layers)
        if type(block).__name__ != "PPMissingLayer"  # another pipeline stage has it
    ]
    return name, len(layers), parts


def _part(index: int, block: nn.Module, family: Family, name: str) -> WorkerLayer:
    mlp = getattr(block, family.mlp, None)
    down = getattr(mlp, family.down, None)
    if not isinstance(mlp, nn.Module) or not isinstance(down, nn.Module):
        raise ArchitectureError(
            f"layer {index} of vLLM's {name} is not a dense MLP layer: found {type(mlp).__name__}",
            allowed=f"{family.mlp}.{family.down} in every layer",
        )
    write = mlp if family.post_norm is None else getattr(block, family.post_norm)
    base = getattr(down, "base_layer", down)
    wanted = ("tp_rank", "input_size_per_partition", "output_size", "reduce_results")
    if not all(hasattr(base, attribute) for attribute in wanted) or not getattr(base, "input_is_parallel", False):
        raise ArchitectureError(
            f"the down-projection of layer {index} of vLLM's {name} is a {type(base).__name__}",
            allowed="a row-parallel linear layer that takes its share of the input",
        )
    return WorkerLayer(index, block, write, down, writes_share=write is mlp and not base.reduce_results)


def _touch(
    part: WorkerLayer, plan: dict[str, Any], numbers: list[Any], undo: list[Callable[[], Any]], calls: dict[int, int]
) -> int:
    """Steer one layer; returns how many neurons of it are steered here, 0 for a vector."""
    if plan["kind"] == "vectors":
        module = part.block if plan["place"] == "block" else part.write
        if module is part.block or part.adds:
            vector = torch.tensor(numbers, dtype=torch.float32) * plan["strength"]
            undo.append(module.register_forward_hook(_counted(adder(vector), calls, part.index)).remove)
        return 0
    here = local_neurons(numbers, part.owned)
    if not here:
        return 0
    if plan["mode"] == "fold":
        undo.append(part.fold(here, plan["multiplier"]))
    else:
        scale = _counted(scaler(lambda x: here, plan["multiplier"]), calls, part.index)
        undo.append(part.down.register_forward_pre_hook(scale, with_kwargs=True).remove)
    return len(here)


def _counted(hook: Callable[..., Any], calls: dict[int, int], layer: int) -> Callable[..., Any]:
    """The hook, with its calls counted: a hook that is never called steers nothing."""
    calls[layer] = 0

    def call(*given: Any) -> Any:
        calls[layer] += 1
        return hook(*given)

    return call
