"""What the rows share: the organism, lm-eval's task manager, random models, and a sweep of a given size."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers as tf

from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.discovery.discover import discover
from lm_eval_cna.discovery.measurement import Settings
from lm_eval_cna.organism.recipe import CIRCUIT_FRACTION
from lm_eval_cna.organism.store import OrganismPaths, ensure_organism

TASKS = ("organism_refusal", "organism_benign")
PROMPTS = 100
TOKENS = 48  # max_gen_toks of the two tasks


class Workbench:
    """Made once and handed to every row; what takes long to make is made once.

    Args:
        scratch: a directory that is removed at the end.
        seed: of random weights.
        asked_rounds: what the user asked for, if anything.

    Attributes:
        rounds: of the row at hand.
    """

    def __init__(self, scratch: Path, *, seed: int, asked_rounds: int | None) -> None:
        self.scratch = scratch
        self.seed = seed
        self.asked_rounds = asked_rounds
        self.rounds = 1
        self._numbers = itertools.count()

    def folder(self, name: str) -> Path:
        """A new folder's path."""
        return self.scratch / f"{name}-{next(self._numbers)}"

    @cached_property
    def organism(self) -> OrganismPaths:
        """The organism; trained on first use, which takes minutes."""
        return ensure_organism()

    @cached_property
    def manager(self) -> Any:
        """lm-eval's task manager with the project's own tasks alone, so that it takes no seconds to build."""
        from lm_eval.tasks import TaskManager

        from lm_eval_cna.resources import tasks_dir

        return TaskManager(include_path=str(tasks_dir()), include_defaults=False)

    @cached_property
    def instruct(self) -> tuple[Any, Any]:
        """The instruct organism in float32, and its tokenizer."""
        path = self.organism.instruct
        return tf.AutoModelForCausalLM.from_pretrained(path).eval(), tf.AutoTokenizer.from_pretrained(path)

    @cached_property
    def circuit(self) -> Path:
        """The organism's circuit, in a file."""
        path = self.scratch / "circuit.json"
        model, tokenizer = self.instruct
        identity = str(self.organism.instruct)
        discover(model, tokenizer, load_contrast("organism"), fraction=CIRCUIT_FRACTION, model_id=identity).write(path)
        return path

    def sweep(
        self,
        *,
        model: Path | None = None,
        circuit: Path | None = None,
        discover: bool = False,
        cells: int = 9,
        prompts: int = PROMPTS,
        batch_size: int | str = "auto",
        mode: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        **more: Any,
    ) -> None:
        """Run a sweep of generated answers, from loading the model to its summary.

        Args:
            model: a checkpoint; by default the instruct organism.
            circuit: its circuit.
            discover: find the circuit in the sweep, instead.
            cells: the baseline, one random control at both ends, and CNA at as many multipliers as are left.
            prompts: half of each of `TASKS`.
            batch_size: rows of a batch; by default the sweep's own choice.
            mode: steering mode; by default the sweep's own choice.
            device: where.
            dtype: of the weights.
            **more: further fields of the sweep's configuration.
        """
        from lm_eval_cna.sweep.config import parse_config
        from lm_eval_cna.sweep.runner import run_sweep

        output = self.folder("run")
        config: dict[str, Any] = {
            "model": str(model or self.organism.instruct),
            "model_args": {"device": device, "dtype": dtype, "batch_size": batch_size},
            "circuit": None if discover else str(circuit or self.circuit),
            "contrast": "organism",
            "fraction": CIRCUIT_FRACTION,
            "methods": ["cna", "random"],
            "random": 1,
            "multipliers": multipliers(cells - 2),
            "tasks": [{"task": task} for task in TASKS],
            "limit": prompts // len(TASKS),
            "harmless_kl": False,
            "output": str(output),
            **({} if mode is None else {"mode": mode}),
            **more,
        }
        with no_environment_report():
            run_sweep(parse_config(config), task_manager=self.manager, command=["benchmarks"])
        shutil.rmtree(output)


def multipliers(number: int) -> list[float]:
    """`number` multipliers from 0 to 2, 1 among them."""
    assert number >= 3
    below = (number - 1) // 2
    above = number - 1 - below
    return [i / below for i in range(below)] + [1.0] + [1 + (i + 1) / above for i in range(above)]


@contextmanager
def no_environment_report() -> Iterator[None]:
    """Keep lm-eval from calling `pip list` and more after every evaluation; on both sides of a row, or on none."""
    with mock.patch("torch.utils.collect_env.get_pretty_env_info", lambda: "not asked for"):
        yield


def random_llama(
    *, seed: int, layers: int, hidden: int, width: int, heads: int, vocabulary: int, dtype: torch.dtype = torch.float32
) -> Any:
    """A Llama of random weights that never ends a text early, in evaluation mode."""
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = tf.LlamaForCausalLM(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    return model


def some_circuit(model: Any, tokenizer: Any, fraction: float = 0.001) -> Any:
    """A circuit of a model that has nothing to be found: as good as any for timing."""
    settings = Settings(batch_size=16)
    return discover(
        model,
        tokenizer,
        load_contrast("organism"),
        fraction=fraction,
        universal_filter=False,
        check_leakage=False,
        settings=settings,
    )
