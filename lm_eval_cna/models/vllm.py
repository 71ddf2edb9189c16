"""cna-vllm: lm-eval's VLLM under an intervention, on one or many GPUs, or on a CPU.

The engine's workers are steered where they are (`vllm_engine.worker`); without a circuit, or at multiplier 1, they are
not touched. On a GPU a circuit is folded into the weights, so CUDA graphs and compilation stay on. Vectors, and weights
that are quantized or packed, need hooks and thus an eager engine. Requests and answers are made to match cna-hf's.
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from torch import nn
from transformers import AutoConfig

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.models.arguments import check_batch_size, check_dtype, check_engine_arguments, naming_the_model
from lm_eval_cna.models.steered import Steered, described, read_arguments
from lm_eval_cna.models.vllm_engine.checkpoint import (
    build_skeleton,
    checkpoint_sha256,
    find_checkpoint,
    load_down_projections,
)
from lm_eval_cna.models.vllm_engine.library import VLLM, VLLM_VERSION, current_platform
from lm_eval_cna.models.vllm_engine.plan import Answer, check_steered, check_workers, plan_for, resolve_mode
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture

_WORKER = "lm_eval_cna.models.vllm_engine.worker.SteeringWorker"
#: Arguments of the engine that do not change its answers, or that the fingerprint holds elsewhere.
_NOT_IN_FINGERPRINT = {
    "model",
    "revision",
    "tokenizer",
    "tokenizer_revision",
    "dtype",
    "worker_extension_cls",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_num_seqs",
    "max_num_batched_tokens",
    "download_dir",
    "disable_log_stats",
}
#: Generation settings of the model that are passed on to vLLM: always, and when sampling.
_ALWAYS, _SAMPLED = ("repetition_penalty",), ("temperature", "top_k", "top_p", "min_p")


@register_model("cna-vllm")
class CNAVLLM(Steered, VLLM):  # type: ignore[misc]  # lm-eval carries no type information
    """A model in vLLM whose neurons or residual stream are steered while lm-eval asks it.

    Args:
        pretrained: model name or path; by default the model that the circuit file names.
        circuit: path of an intervention file (circuit or vectors), or `hf://owner/repo/file@revision`.
        multiplier: 0 suppresses, 1 is the untouched model, 2 amplifies.
        scale: factor of vectors.
        mode: "auto" (fold where weights can be edited), "fold" or "hook".
        revision: of `pretrained`; by default the one that the circuit file names.
        **kwargs: everything that `vllm` takes, `data_parallel_size` above 1 excepted.

    Raises:
        ConfigError: an argument is wrong, or no model is named.
        InterventionError: the circuit cannot be read or does not fit the model.
        ArchitectureError: a circuit is given for a model of an unknown family, or vLLM built another model than
            transformers does.
        SteeringError: the mode is not possible here, or the workers did not steer all that was asked.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        circuit: str | None = None,
        multiplier: float | str = 0.0,
        scale: float | str = 1.0,
        mode: str = "auto",
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_dtype(kwargs.get("dtype", "auto"))
        check_batch_size(kwargs.get("batch_size", "auto"))
        check_engine_arguments(kwargs)
        asked = read_arguments(pretrained, revision, circuit, multiplier, scale, mode)
        self._trusted = bool(kwargs.get("trust_remote_code", False))
        with naming_the_model(asked.pretrained):
            config = AutoConfig.from_pretrained(
                asked.pretrained, revision=asked.revision, trust_remote_code=self._trusted
            )
            hooked = asked.mode == "hook" or isinstance(asked.setting.intervention, Vectors)
            packed = any(kwargs.get(name) for name in ("quantization", "lora_local_path"))
            if hooked or packed or current_platform.is_cpu() or getattr(config, "quantization_config", None):
                kwargs.setdefault("enforce_eager", True)
            super().__init__(
                pretrained=asked.pretrained, revision=asked.revision, worker_extension_cls=_WORKER, **kwargs
            )
        self.pretrained, self.revision, self.mode = str(asked.pretrained), asked.revision or "main", asked.mode
        self._folder = find_checkpoint(self.pretrained, asked.revision, kwargs.get("download_dir"))
        self._mode_in_use = "none"
        self._uncalled = False
        self._seeds: random.Random | None = None
        if asked.setting.intervention is not None:
            self.steer(asked.setting)

    shares_batches = computes_here = False

    @property
    def module(self) -> nn.Module:
        """The transformers model without weights: `skeleton`."""
        return self.skeleton

    @property
    def config(self) -> Any:
        """The model's transformers configuration, as HFLM calls it."""
        return self._config

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Empty: the engine chooses its own batches."""
        return {}

    @cached_property
    def skeleton(self) -> nn.Module:
        """The transformers model of this checkpoint on the meta device, except for its down-projections."""
        dtype = self._engine.dtype
        skeleton = build_skeleton(self._config, dtype, name=self.pretrained, trust_remote_code=self._trusted)
        if self._folder is not None and self._engine.quantization is None:
            load_down_projections(skeleton, self._folder, dtype)
        return skeleton

    @cached_property
    def architecture(self) -> Architecture:
        """Layers and down-projections of the model, as transformers builds it.

        Raises:
            ArchitectureError: the model is of no known family.
        """
        return find_architecture(self.skeleton)

    @cached_property
    def weights_sha256(self) -> str:  # type: ignore[override]
        """Hash of the checkpoint's files; of its name and revision if it is not on the disk."""
        if self._folder is None:
            return json_sha256([self.pretrained, self.revision])
        return checkpoint_sha256(self._folder)

    @property
    def model_name(self) -> str:
        """The model's name or path, for people."""
        return self.pretrained

    @property
    def mode_in_use(self) -> str:
        """How the model is steered now: "fold", "hook" or "none"."""
        return self._mode_in_use

    def resolve_mode(self, intervention: Circuit | Vectors, mode: Mode) -> str:
        """How the engine would be steered with an intervention: "fold" or "hook"; "auto" is the model's own mode.

        Raises:
            SteeringError: the mode that was asked for is not possible.
        """
        return resolve_mode(self._workers, intervention, self.mode if mode == "auto" else mode)

    def steer(self, setting: Setting) -> None:
        """Put the model back and steer it anew; the baseline setting leaves it untouched.

        Raises:
            InterventionError: the intervention does not fit the model.
            ArchitectureError: the workers do not hold the model that transformers builds.
            SteeringError: the mode is not possible, or the workers did not steer all that was asked.
        """
        self.unsteer()
        intervention = setting.intervention
        if intervention is not None:
            self.accept(intervention)
            mode = self.resolve_mode(intervention, self.mode)
            if not setting.is_baseline:
                self._steer(plan_for(setting, mode), mode)
        self.setting = setting

    def unsteer(self) -> None:
        """Put the model back, bit for bit."""
        if self._mode_in_use != "none":
            self.model.collective_rpc("cna_unsteer")
            self._forget_prefixes()
        self._mode_in_use, self._uncalled, self.setting = "none", False, Setting()

    def close(self) -> None:
        """Stop the engine and its workers."""
        self.model.llm_engine.engine_core.shutdown()

    def _steer(self, plan: dict[str, Any], mode: str) -> None:
        try:
            check_steered(self.model.collective_rpc("cna_steer", args=(plan,)), plan)
        except BaseException:
            self.model.collective_rpc("cna_unsteer")
            raise
        self._mode_in_use, self._uncalled = mode, mode == "hook"
        self._forget_prefixes()

    def _forget_prefixes(self) -> None:
        """Drop the keys and values of earlier prompts, which were computed under another setting."""
        if not self.model.reset_prefix_cache():
            raise SteeringError("vLLM keeps its prefix cache", do="wait until the engine has answered every request")

    @cached_property
    def _workers(self) -> list[Answer]:
        """Each worker's description, checked against the model."""
        answers: list[Answer] = self.model.collective_rpc("cna_describe")
        check_workers(answers, self.architecture)
        return answers

    @property
    def _engine(self) -> Any:
        """The engine's configuration of the model."""
        return self.model.llm_engine.model_config

    def _model_generate(self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None) -> Any:
        """As in VLLM, but texts are decoded as HFLM decodes them.

        Raises:
            SteeringError: the hooks were not called, so the answers are the untouched model's.
        """
        outputs = super()._model_generate(requests, generate=generate, sampling_params=sampling_params)
        if self._uncalled:
            silent = sorted({layer for layers in self.model.collective_rpc("cna_uncalled") for layer in layers})
            if silent:
                raise SteeringError(f"vLLM does not call the hooks of layers {silent}: nothing was steered there")
            self._uncalled = False
        if generate and self.think_end_token is None:
            for output in outputs:
                for completion in output.outputs:
                    completion.text = self.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True)
        return outputs

    def modify_gen_kwargs(
        self, gen_kwargs: dict[str, Any], eos: Any = None, default_max_gen_toks: int = 256
    ) -> tuple[dict[str, Any], list[str], int]:
        """As in VLLM, but greedy unless sampling is asked for, and with the model's own generation settings."""
        options, until, new = VLLM.modify_gen_kwargs(gen_kwargs, eos=eos, default_max_gen_toks=default_max_gen_toks)
        sampled = bool(normalize_gen_kwargs(gen_kwargs, default_max_gen_toks)["do_sample"])
        if not sampled:
            options["temperature"] = 0.0
        elif self._seeds is not None:
            options.setdefault("seed", self._seeds.getrandbits(31))
        names = _ALWAYS + (_SAMPLED if sampled else ())
        return {name: self._defaults[name] for name in names if name in self._defaults} | options, until, new

    def seed_sampling(self, seed: int) -> None:
        """Make sampled answers a function of the seed and of the next prompts, in their order."""
        self._seeds = random.Random(seed)

    def engine_info(self) -> dict[str, Any]:
        """What a results file says about the model, apart from steering."""
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.skeleton.parameters()),
            "model_dtype": self._engine.dtype,
            "model_revision": self.revision,
            "engine": f"vllm {VLLM_VERSION}",
            "tensor_parallel_size": self.tensor_parallel_size,
            "quantization": self._engine.quantization,
        }

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The model's generation settings, in vLLM's terms."""
        found: dict[str, Any] = self._engine.get_diff_sampling_param()
        return found

    def fingerprint_of(self, setting: Setting, mode: str) -> str:
        """Hash of everything but the request that decides a response: engine, weights, steering, tokenization."""
        return json_sha256(
            {
                "engine": ["vllm", VLLM_VERSION, current_platform.device_type],
                "weights": self.weights_sha256,
                "dtype": str(self._engine.dtype),
                "setting": None if setting.is_baseline else described(setting, mode),
                "generation_config": {name: str(value) for name, value in sorted(self._defaults.items())},
                "tokenizer": [self.tokenizer.name_or_path, len(self.tokenizer)],
                "arguments": {
                    name: str(value)
                    for name, value in sorted(self.model_args.items())
                    if name not in _NOT_IN_FINGERPRINT
                },
                "asked": [
                    str(getattr(self, name, None))
                    for name in (
                        "add_bos_token",
                        "custom_prefix_token_id",
                        "max_length",
                        "truncation_side",
                        "think_end_token",
                        "lora_request",
                    )
                ],
            }
        )
