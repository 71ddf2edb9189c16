"""vLLM as the engine of a sweep: one engine stays alive, and only the setting changes.

It takes no rows of several settings, so a cell's requests go to it together, cell after cell; it makes batches of them
itself, and caches what a cell's prompts share. Activations are not to be had from it: what a sweep must discover,
transformers discovers first, and is gone before the engine starts.
"""

from __future__ import annotations

import gc
from typing import Any, cast

import torch

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.methods import OF_VECTORS
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.sweep.batches import HANDED_OVER
from lm_eval_cna.sweep.config import SweepConfig

#: Model arguments that transformers is given too, where it discovers.
_SHARED = ("dtype", "revision", "trust_remote_code", "add_bos_token", "chat_template_args", "enable_thinking")


def check_elsewhere(config: SweepConfig) -> None:
    """Refuse a sweep that cannot be computed in another process than its own.

    Raises:
        ConfigError: for vLLM, whose engine stands in the sweep's process.
    """
    if config.engine == "vllm":
        raise ConfigError("engine vllm computes in the sweep's own process", do="leave out --ray, or the engine")


def load_vllm(config: SweepConfig) -> CNAHFLM:
    """The engine of a sweep, unsteered. The sweep asks of it what it asks of cna-hf, so that is what it is called here.

    A sweep uses one mode throughout: vectors need hooks, so circuits are hooked too where vectors are compared.

    Raises:
        ConfigError: vLLM is not installed, or cannot load the model with these arguments.
    """
    from lm_eval_cna.models.vllm import CNAVLLM

    arguments = {"batch_size": HANDED_OVER, **config.model_args}
    if arguments["batch_size"] == "auto":
        arguments["batch_size"] = HANDED_OVER  # with "auto", vLLM draws bars of its own
    mode = "hook" if OF_VECTORS & set(config.compared) else config.mode
    lm: Any = CNAVLLM(pretrained=config.model, **arguments, mode=mode)
    lm.quiet = True
    return cast(CNAHFLM, lm)


def discovery_config(config: SweepConfig) -> SweepConfig:
    """The sweep as transformers is to begin it, for what must be discovered before vLLM starts."""
    arguments = {name: value for name, value in config.model_args.items() if name in _SHARED}
    return config.model_copy(update={"engine": "hf", "mode": "auto", "model_args": arguments})


def free_memory() -> None:
    """Give back what a model that is gone has left in memory."""
    gc.collect()
    torch.cuda.empty_cache()
