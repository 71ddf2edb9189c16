"""cna_capitals, cna_sva and long_form_quality through lm-eval, with answers from a list and with a steered model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_cna.behaviours.agreement import agreement_items
from lm_eval_cna.behaviours.capitals import capital_items
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.resources import harmless_prompts
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.prompts import Rendering
from tests.helpers.checkpoints import save_llama
from tests.helpers.local_tasks import ANSWER, LOOP, FixedAnswers, evaluate
from tests.helpers.scores import alike

ITEMS = {"cna_capitals": capital_items(), "cna_sva": agreement_items()}
CONTRASTS = {"cna_capitals": "capitals", "cna_sva": "sva"}
LONG_FORM_METRICS = {"quality", "quality_strict", "degenerate_rate", "words"}


class Choosing(LM):
    """Gives a choice the log-likelihood that a function of (prompt, choice) says."""

    def __init__(self, score: Callable[[str, str], float]) -> None:
        super().__init__()
        self.score = score

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(self.score(prompt, choice.strip()), False) for prompt, choice in (r.args for r in requests)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise AssertionError("these tasks compare choices")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("these tasks compare choices")


@pytest.mark.parametrize("task", ITEMS)
def test_requests_are_the_items(manager: TaskManager, task: str) -> None:
    loaded = manager.load(task)["tasks"][task]
    loaded.build_all_requests()
    expected = [(item.prompt, f" {choice}") for item in ITEMS[task] for choice in item.choices]
    assert [instance.args for instance in loaded.instances] == expected
    assert {instance.request_type for instance in loaded.instances} == {"loglikelihood"}
    assert loaded.config.num_fewshot == 0 and loaded.VERSION == 1.0
    assert len(ITEMS[task]) >= 100


@pytest.mark.parametrize("task", ITEMS)
def test_a_model_that_knows_is_always_right(manager: TaskManager, task: str) -> None:
    right = {(item.prompt, item.choices[item.answer]) for item in ITEMS[task]}
    row, results = evaluate(Choosing(lambda *asked: -1.0 if asked in right else -50.0), manager, task)
    assert row["acc,none"] == row["acc_norm,none"] == 1.0
    assert len(results["samples"][task]) == len(ITEMS[task])


@pytest.mark.parametrize(
    ("task", "score", "low", "high"),
    [
        # The same choice whatever is asked: by the alphabet, so that popular cities gain nothing.
        ("cna_capitals", lambda prompt, choice: -float(ord(choice[0])), 0.15, 0.35),
        ("cna_sva", lambda prompt, choice: -float(choice in ("are", "were", "have", "seem", "know")), 0.5, 0.5),
        ("cna_sva", lambda prompt, choice: -float(choice in ("is", "was", "has", "seems", "knows")), 0.5, 0.5),
    ],
)
def test_a_model_that_does_not_read_the_question_is_at_chance(
    manager: TaskManager, task: str, score: Callable[[str, str], float], low: float, high: float
) -> None:
    row, results = evaluate(Choosing(score), manager, task)
    assert low <= row["acc,none"] <= high
    n = len(ITEMS[task])
    expected = (row["acc,none"] * (1 - row["acc,none"]) / (n - 1)) ** 0.5
    assert row["acc_stderr,none"] == pytest.approx(expected)
    assert row["acc_norm_stderr,none"] > 0
    assert {sample["acc"] for sample in results["samples"][task]} == {0.0, 1.0}


@pytest.mark.parametrize("task", ITEMS)
def test_steering_with_the_packaged_contrast_set(tmp_path: Path, manager: TaskManager, task: str) -> None:
    """The whole way: contrast set, circuit, cna-hf, task; a random model shows that numbers move, not where to."""
    folder = save_llama(tmp_path)
    lm = CNAHFLM(pretrained=str(folder), device="cpu", batch_size=16)
    contrast = load_contrast(CONTRASTS[task])
    found = measure(
        lm.model, lm.tokenizer, contrast, universal_filter=False, settings=Settings(Rendering(chat_template=False))
    )
    circuit = cna.find(found, top_k=16)
    assert circuit.name == CONTRASTS[task] and circuit.discovery.leakage == contrast.leakage

    def answers(model: LM) -> list[Any]:
        results = lm_eval.simple_evaluate(model=model, tasks=[task], task_manager=manager, limit=8, bootstrap_iters=0)
        assert results is not None
        return [sample["resps"] for sample in results["samples"][task]]

    stock = answers(HFLM(pretrained=str(folder), device="cpu", batch_size=16))
    lm.steer(Setting(circuit, 1.0))
    assert answers(lm) == stock, "to the last digit"
    lm.steer(Setting(circuit, 0.0))
    assert not alike(answers(lm), stock)


def test_long_form_asks_for_512_tokens_of_every_harmless_prompt(manager: TaskManager) -> None:
    task = manager.load("long_form_quality")["tasks"]["long_form_quality"]
    task.build_all_requests()
    assert tuple(instance.args[0] for instance in task.instances) == harmless_prompts()
    for instance in task.instances:
        settings = dict(instance.args[1])
        assert settings.pop("temperature", 0) == 0
        assert settings == {"until": [], "do_sample": False, "max_gen_toks": 512}
    assert set(task.aggregation()) == LONG_FORM_METRICS and task.VERSION == 1.0


def test_long_form_finds_late_loops(manager: TaskManager) -> None:
    late = " ".join(harmless_prompts()[:16]) + " and so on" * 100  # 178 sound words first
    row, results = evaluate(FixedAnswers([ANSWER, late, LOOP, ANSWER]), manager, "long_form_quality")
    samples = results["samples"]["long_form_quality"]
    assert [sample["degenerate_rate"] for sample in samples[:4]] == [0.0, 1.0, 1.0, 0.0]
    assert row["degenerate_rate,none"] == 0.5 and row["degenerate_rate_stderr,none"] > 0
    assert row["words,none"] == pytest.approx((2 * len(ANSWER.split()) + 478 + len(LOOP.split())) / 4)
    assert {f"{metric},none" for metric in LONG_FORM_METRICS} <= set(row)
    assert not any(name.startswith("outcome") for name in row)
