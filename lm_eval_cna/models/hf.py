"""cna-hf: lm-eval's HFLM with an intervention.

Without a circuit, or at multiplier 1, it equals the stock `hf` model to the last digit. A steered model reads prefixes
that several log-likelihoods share once (`models/decoding/likelihood.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeGuard

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import nn

from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.models.arguments import check_batch_size, check_device, check_dtype, naming_the_model
from lm_eval_cna.models.decoding.likelihood import can_share, score_tokens
from lm_eval_cna.models.quantization import describe_quantization, quantization_asked_for
from lm_eval_cna.models.steered import Steered, described, read_arguments
from lm_eval_cna.steering.apply import Steering, apply
from lm_eval_cna.steering.modes import Mode, resolve_mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.fingerprint import weights_sha256


@register_model("cna-hf")
class CNAHFLM(Steered, HFLM):  # type: ignore[misc]  # lm-eval carries no type information
    """A Hugging Face model whose neurons or residual stream are steered while lm-eval asks it.

    Args:
        pretrained: model name, path, or a loaded model; by default the model that the circuit file names.
        circuit: path of an intervention file (circuit or vectors), or `hf://owner/repo/file@revision`.
        multiplier: 0 suppresses, 1 is the untouched model, 2 amplifies.
        scale: factor of vectors.
        mode: "auto" (fold where weights can be edited), "fold" or "hook".
        revision: of `pretrained`; by default the one that the circuit file names.
        device: one that this machine has; by default, or for "auto", CUDA or MPS where there is one, else the CPU.
        **kwargs: everything that `hf` takes, and `quantization_config` (see `models/quantization.py`).

    Raises:
        ConfigError: an argument is wrong, or no model is named.
        InterventionError: the circuit cannot be read or does not fit the model.
        ArchitectureError: a circuit is given for a model of an unknown family.
        SteeringError: the mode is not possible here.
    """

    def __init__(
        self,
        pretrained: Any = None,
        circuit: str | None = None,
        multiplier: float | str = 0.0,
        scale: float | str = 1.0,
        mode: str = "auto",
        revision: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        # Everything that can be wrong in the arguments is found before a model is loaded.
        device = check_device(device)
        check_dtype(kwargs.get("dtype", "auto"))
        check_batch_size(kwargs.get("batch_size", 1))
        asked = read_arguments(pretrained, revision, circuit, multiplier, scale, mode)
        self.lockstep = kwargs.get("tp_plan") is not None
        self._quantization = quantization_asked_for(kwargs)
        with naming_the_model(asked.pretrained), _processes_on_cpu(device, kwargs):
            super().__init__(pretrained=asked.pretrained, revision=asked.revision or "main", device=device, **kwargs)
        self._settle_on_cpu()
        self.mode = asked.mode
        self.steering: Steering | None = None

        self.weights_sha256 = weights_sha256(self.model)
        if asked.setting.intervention is not None:
            self.steer(asked.setting)

    shares_batches = computes_here = True

    @property
    def module(self) -> nn.Module:
        """The transformers model."""
        model: nn.Module = self.model
        return model

    @cached_property
    def architecture(self) -> Architecture:
        """Layers and down-projections of the model.

        Raises:
            ArchitectureError: the model is of no known family.
        """
        return find_architecture(self.model)

    def steer(self, setting: Setting) -> None:
        """Put the model back and steer it anew; the baseline setting leaves it untouched.

        Raises:
            InterventionError, SteeringError, ArchitectureError: see `lm_eval_cna.steering.apply`.
        """
        self.unsteer()
        intervention = setting.intervention
        if intervention is not None:
            self.accept(intervention)
            self.steering = apply(self.model, setting, mode=self.mode, architecture=self.architecture)
        self.setting = setting

    def resolve_mode(self, intervention: Circuit | Vectors, mode: Mode) -> str:
        """How the model would be steered with an intervention: "fold" or "hook".

        Raises:
            SteeringError: not at all in this mode.
        """
        return resolve_mode(intervention, self.architecture, self.model, mode)

    def unsteer(self) -> None:
        """Put the model back, bit for bit."""
        if self.steering is not None:
            self.steering.undo()
        self.steering, self.setting = None, Setting()

    @property
    def model_name(self) -> str:
        """The model's name or path, for people."""
        return str(self.model.name_or_path)

    @property
    def mode_in_use(self) -> str:
        """How the model is steered now: "fold", "hook" or "none"."""
        return "none" if self.steering is None else self.steering.mode

    def fingerprint_of(self, setting: Setting, mode: str) -> str:
        """Identity of everything that decides a response, except the request: weights, precision, steering, tokenizing.

        Args:
            setting: what the model is steered with.
            mode: how: "fold", "hook" or "rows".
        """
        generation = getattr(self.model, "generation_config", None)
        quantization = describe_quantization(self.model)
        return json_sha256(
            {
                "weights": self.weights_sha256,
                "dtype": str(self.model.dtype),
                **({} if quantization is None else {"quantization": quantization}),
                "setting": None if setting.is_baseline else described(setting, mode),
                "generation_config": None if generation is None else generation.to_dict(),
                "tokenizer": [self.tokenizer.name_or_path, len(self.tokenizer)],
                "arguments": [
                    str(getattr(self, name, None))
                    for name in (
                        "backend",
                        "add_bos_token",
                        "custom_prefix_token_id",
                        "max_length",
                        "truncation",
                        "think_end_token",
                        "softmax_dtype",
                        "mixed_precision_dtype",
                    )
                ],
            }
        )

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As in HFLM, but a steered model reads shared prefixes once, where its cache allows that.

        An untouched model takes the path of stock `hf`: shared prefixes round differently, by about 1e-6.
        """
        score = HFLM._loglikelihood_tokens if self.setting.is_baseline or not can_share(self) else score_tokens
        scores: list[tuple[float, bool]] = score(
            self, requests, disable_tqdm=disable_tqdm or self.quiet, override_bs=override_bs
        )
        return scores

    def seed_sampling(self, seed: int) -> None:
        """Make sampled answers a function of the seed and of what is asked next."""
        torch.manual_seed(seed)

    def engine_info(self) -> dict[str, Any]:
        """lm-eval's model information."""
        info: dict[str, Any] = HFLM.get_model_info(self)
        return info

    def _create_model(self, *args: Any, quantization_config: Any = None, **kwargs: Any) -> None:
        """As in HFLM, with the quantization that the user asked for where the checkpoint has none."""
        chosen = quantization_config if self._quantization is None else self._quantization
        super()._create_model(*args, quantization_config=chosen, **kwargs)

    def _settle_on_cpu(self) -> None:
        """Give every process its share of the requests, which HFLM does only on several GPUs."""
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            self._device = accelerator.device
        if self._device.type == "cpu":
            self._device = torch.device("cpu")  # HFLM numbers the CPUs of a tp_plan's processes


def shares_batches(lm: Steered) -> TypeGuard[CNAHFLM]:
    """Whether a model takes rows of several settings in one batch, and so goes into `models.shared_batches`."""
    return lm.shares_batches and isinstance(lm, CNAHFLM)


@contextmanager
def _processes_on_cpu(device: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Have accelerate join the CPU processes of torchrun or `accelerate launch`; by default it sees one process."""
    if device != "cpu" or kwargs.get("tp_plan") is not None or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    before = os.environ.get("ACCELERATE_USE_CPU")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ACCELERATE_USE_CPU"]
        else:
            os.environ["ACCELERATE_USE_CPU"] = before
