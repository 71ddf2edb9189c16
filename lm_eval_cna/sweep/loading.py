"""Loads the model of a sweep, with transformers or with vLLM. From here on nobody asks which of the two it is.

vLLM gives out no activations. What such a sweep must discover, a transformers model discovers first, and it is freed
before the engine starts.
"""

from __future__ import annotations

import gc

import torch

from lm_eval_cna.interventions.methods import OF_VECTORS
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.sweep.batches import HANDED_OVER, ROWS
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.interventions import Interventions, find_interventions, measures

#: Model arguments that transformers is given too, where it discovers for vLLM.
_SHARED = ("dtype", "revision", "trust_remote_code", "add_bos_token", "chat_template_args", "enable_thinking")
_SCORED_ROWS = 32  # rows of a batch of log-likelihoods where the user does not say


def load(config: SweepConfig) -> Steered:
    """The model of a sweep, unsteered.

    Raises:
        ConfigError: it cannot be loaded with these arguments, or vLLM is asked for and not installed.
    """
    lm = _load_vllm(config) if config.engine == "vllm" else _load_hf(config)
    lm.quiet = True
    return lm


def load_with_interventions(config: SweepConfig, directory: RunDirectory) -> tuple[Steered, Interventions]:
    """The model of a sweep, unsteered, and what its cells steer with.

    Raises:
        CNAError: the model cannot be loaded, or an intervention cannot be read or found.
    """
    if config.engine == "vllm" and measures(config, directory):
        arguments = {name: value for name, value in config.model_args.items() if name in _SHARED}
        discovering = config.model_copy(update={"engine": "hf", "mode": "auto", "model_args": arguments})
        reader = load(discovering)
        interventions = find_interventions(config, reader, directory)
        del reader
        gc.collect()
        torch.cuda.empty_cache()
        return load(config), interventions
    lm = load(config)
    return lm, find_interventions(config, lm, directory)


def _load_hf(config: SweepConfig) -> Steered:
    arguments = {name: value for name, value in config.model_args.items() if name != "batch_size"}
    # Rows are hooks with several settings; what runs one cell at a time in such a sweep is a hook too.
    mode = "hook" if config.mode in ("auto", ROWS) else config.mode
    lm = CNAHFLM(pretrained=config.model, **arguments, mode=mode)
    lm._rank, lm._world_size = 0, 1  # of several processes too: a sweep shares its batches out itself
    given = config.model_args.get("batch_size", "auto")
    lm.batch_size_per_gpu = _SCORED_ROWS if given == "auto" else int(given)
    return lm


def _load_vllm(config: SweepConfig) -> Steered:
    from lm_eval_cna.models.vllm import CNAVLLM

    arguments = {"batch_size": HANDED_OVER, **config.model_args}
    if arguments["batch_size"] == "auto":
        arguments["batch_size"] = HANDED_OVER  # with "auto", vLLM draws bars of its own
    # A sweep uses one mode throughout: vectors need hooks, so circuits are hooked too where vectors are compared.
    mode = "hook" if OF_VECTORS & set(config.compared) else config.mode
    return CNAVLLM(pretrained=config.model, **arguments, mode=mode)
