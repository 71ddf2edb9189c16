"""Collects the requests of a sweep from lm-eval's own tasks, before anything is computed.

All cells ask the same requests, so they are built once, without any metric or judge. When lm-eval evaluates a cell it
builds them again and finds each one answered.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.judging.task import JudgedTask
from lm_eval_cna.models.hf import shares_batches
from lm_eval_cna.models.shared_batches.capacity import rows_that_fit
from lm_eval_cna.models.shared_batches.generation import GenerationJob
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.responses import request_key
from lm_eval_cna.sweep.batches import GENERATED, HANDED_OVER, Request
from lm_eval_cna.sweep.config import SweepConfig, TaskSpec
from lm_eval_cna.transformer.prompts import chat_template_of, encode_prompts

# The defaults of lm-eval's simple_evaluate, which seeds with them before it builds the same requests again.
_PYTHON_SEED, _OTHER_SEED = 0, 1234


@dataclass(eq=False)
class Evaluation:
    """Tasks with the same chat template and few-shot settings, which one call of lm-eval evaluates."""

    name: str
    """Names the setting in the run directory ("chat", "plain-5shot")."""
    chat_template: bool
    """Whether the chat template is applied."""
    num_fewshot: int | None
    """Few-shot examples, or None for each task's own."""
    tasks: list[Any]
    """Task and group objects, loaded once."""
    controlled: bool
    """Whether random controls are asked too."""
    judged: list[str]
    """Names of the tasks whose responses a judge grades."""


def load_evaluations(config: SweepConfig, lm: Steered, manager: TaskManager) -> list[Evaluation]:
    """Group the tasks by their evaluation settings and load each group once."""
    evaluations: dict[tuple[bool, int | None, bool], Evaluation] = {}
    for spec in config.tasks:
        chat = chat_template_of(lm.tokenizer) is not None if spec.chat_template is None else spec.chat_template
        loaded = manager.load([spec.task])
        controlled = _controlled(spec, loaded["tasks"].values())
        name = "chat" if chat else "plain"
        name += "" if spec.num_fewshot is None else f"-{spec.num_fewshot}shot"
        name += "" if controlled else "-uncontrolled"
        evaluation = evaluations.setdefault(
            (chat, spec.num_fewshot, controlled), Evaluation(name, chat, spec.num_fewshot, [], controlled, [])
        )
        evaluation.tasks += _outermost(loaded)
        evaluation.judged += [name for name, task in loaded["tasks"].items() if isinstance(task, JudgedTask)]
    return list(evaluations.values())


def collect(evaluation: Evaluation, lm: Steered, manager: TaskManager, limit: int | None) -> list[Request]:
    """The requests of an evaluation, in lm-eval's order and each once.

    Tasks are prepared as `lm_eval.simple_evaluate` prepares them, so that it builds the same requests later.
    """
    random.seed(_PYTHON_SEED)
    np.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)
    found: dict[str, Request] = {}
    for name, task in manager.load(list(evaluation.tasks))["tasks"].items():
        own = task.get_config("num_fewshot")
        if evaluation.num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=evaluation.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_OTHER_SEED)
        task.build_all_requests(
            limit=get_sample_size(task, limit),
            apply_chat_template=evaluation.chat_template,
            fewshot_as_multiturn=True,
            chat_template=lm.apply_chat_template if evaluation.chat_template else None,
            tokenizer_name=lm.tokenizer_name if evaluation.chat_template else "",
        )
        for instance in task.instances:
            for repeat in range(instance.repeats):
                key = request_key(instance.request_type, instance.args, repeat)
                found.setdefault(key, Request(instance.request_type, instance.args, key, name, instance.doc_id))
    return list(found.values())


def in_order(instances: list[Any]) -> Iterator[str]:
    """The keys of lm-eval's instances; a repeated instance is in the list once for each repeat."""
    seen: dict[int, int] = {}
    for instance in instances:
        repeat = seen.get(id(instance), 0)
        seen[id(instance)] = repeat + 1
        yield request_key(instance.request_type, instance.args, repeat)


def _outermost(loaded: Any) -> list[Any]:
    """The groups and tasks that are in no other group, as `TaskManager.load` takes them back."""
    children = {name for names in loaded["group_map"].values() for name in names}
    named = {**loaded["tasks"], **loaded["groups"]}
    return [item for name, item in named.items() if name not in children]


def _controlled(spec: TaskSpec, tasks: Any) -> bool:
    """Whether controls are asked too: by default where all answers are generated, as in behaviour tasks."""
    if spec.controls is not None:
        return spec.controls
    return all(task.get_config("output_type") == GENERATED for task in tasks)


class Prompts:
    """The encoded prompts of the requests whose answers are generated.

    Args:
        lm: the model.
        requests: only those of kind `generate_until` are taken.

    Raises:
        ConfigError: the model has no room for a prompt beside the answer's tokens.
        ContrastError: a prompt has no token.
    """

    def __init__(self, lm: Steered, requests: Sequence[Request]) -> None:
        generated = [request for request in requests if request.kind == GENERATED]
        encoded = encode_prompts([r.arguments[0] for r in generated], lm.tokenizer, add_bos_token=lm.add_bos_token)
        self._jobs: dict[str, tuple[tuple[int, ...], int, tuple[str, ...]]] = {}
        for request, ids in zip(generated, encoded, strict=True):
            options = normalize_gen_kwargs(dict(request.arguments[1]), lm.max_gen_toks)
            new = int(options["max_gen_toks"])
            room = lm.max_length - new
            if room < 1:
                raise ConfigError(
                    f"{request.task} asks for answers of {new} tokens", got=f"a model of {lm.max_length} in all"
                )
            self._jobs[request.key] = tuple(ids[-room:]), new, tuple(options.get("until") or ())

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of each prompt, by request key."""
        return {key: len(ids) for key, (ids, _, _) in self._jobs.items()}

    def rows(self, lm: Steered) -> int:
        """How many of these prompts fit into one batch with their answers."""
        if not shares_batches(lm):
            return HANDED_OVER
        longest = max((len(ids) for ids, _, _ in self._jobs.values()), default=1)
        return rows_that_fit(lm, longest, max((new for _, new, _ in self._jobs.values()), default=1))

    def job(self, request: Request, setting: int) -> GenerationJob:
        """The request as `SharedGenerator` takes it."""
        ids, new, stop = self._jobs[request.key]
        return GenerationJob(ids, setting, new, stop)
