"""Computing batches: with too little memory in halves, and replaying only what was asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.shared_batches.generation import Completion, SharedGenerator
from lm_eval_cna.results.responses import Response, request_key
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep import answers
from lm_eval_cna.sweep.batches import Batch, Request
from lm_eval_cna.sweep.replay import Replay
from lm_eval_cna.sweep.requests import Prompts
from tests.helpers.checkpoints import save_llama

OPTIONS = {"until": [], "do_sample": False, "max_gen_toks": 6}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CNAHFLM:
    path = save_llama(tmp_path_factory.mktemp("model") / "tiny")
    return CNAHFLM(pretrained=str(path), device="cpu", batch_size=8, mode="hook")


def generated(text: str, **options: Any) -> Request:
    arguments = (text, {**OPTIONS, **options})
    return Request("generate_until", arguments, request_key("generate_until", arguments), "t", 0)


def scored(context: str, continuation: str) -> Request:
    return Request("loglikelihood", (context, continuation), f"{context}|{continuation}", "t", 0)


def computed(lm: CNAHFLM, batch: Batch, settings: list[Setting]) -> list[Response]:
    prompts = Prompts(lm, list(batch.requests))
    ((found, responses),) = answers.compute(lm, settings, [batch], prompts, mode="rows")
    assert found == batch
    return responses


def test_a_batch_that_does_not_fit_is_generated_in_halves(lm: CNAHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch("generate_until", tuple((0, generated(f"the cake {n} is")) for n in range(7)))
    whole = computed(lm, batch, [Setting()])
    sizes: list[int] = []
    original = SharedGenerator.generate

    def short_of_memory(self: SharedGenerator, jobs: Any) -> list[Completion]:
        if len(jobs) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(jobs))
        return original(self, jobs)

    monkeypatch.setattr(SharedGenerator, "generate", short_of_memory)
    assert computed(lm, batch, [Setting()]) == whole
    assert sum(sizes) == 7 and max(sizes) == 2


def test_one_row_that_does_not_fit_is_an_error(lm: CNAHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: SharedGenerator, jobs: Any) -> list[Completion]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SharedGenerator, "generate", never)
    with pytest.raises(torch.OutOfMemoryError):
        computed(lm, Batch("generate_until", ((0, generated("a")), (0, generated("b")))), [Setting()])


def test_log_likelihoods_that_do_not_fit_take_half_the_rows(lm: CNAHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch("loglikelihood", tuple((0, scored(f"the {n} cake is", " sweet")) for n in range(5)))
    whole = computed(lm, batch, [Setting()])
    original, seen = answers.score_settings, []

    def short_of_memory(model: CNAHFLM, *arguments: Any, **more: Any) -> Any:
        seen.append(model.batch_size)
        if model.batch_size > 2:
            raise torch.OutOfMemoryError
        return original(model, *arguments, **more)

    monkeypatch.setattr(answers, "score_settings", short_of_memory)
    monkeypatch.setattr(lm, "batch_size_per_gpu", 8)
    halved = computed(lm, batch, [Setting()])
    assert seen == [8, 4, 2]
    assert [r.value[0] for r in halved] == pytest.approx([r.value[0] for r in whole], abs=1e-5)


def test_answers_without_room_for_a_prompt_are_refused(lm: CNAHFLM) -> None:
    with pytest.raises(ConfigError, match="t asks for answers of 100000 tokens; got 'a model of"):
        Prompts(lm, [generated("a", max_gen_toks=100_000)])


def test_a_long_prompt_keeps_its_end(lm: CNAHFLM) -> None:
    request = generated("the cake " * 5000)
    prompts = Prompts(lm, [request])
    job = prompts.job(request, 0)
    assert len(job.ids) == prompts.lengths[request.key] == lm.max_length - 6
    assert list(job.ids) == lm.tok_encode("the cake " * 5000)[-len(job.ids) :]


def test_a_request_that_was_not_collected_is_named(lm: CNAHFLM) -> None:
    known = generated("known")
    replay = Replay(lm, {known.key: Response("answer", 2)}, {})

    def instance(text: str) -> Instance:
        return Instance("generate_until", {}, (text, OPTIONS), 0, ("jbb", 7, 1))

    assert replay.generate_until([instance("known")]) == ["answer"]
    with pytest.raises(RunError, match=r"jbb asked something else .* got 'document 7'; its prompts are drawn"):
        replay.generate_until([instance("unknown")])


def test_repeats_are_requests_of_their_own(lm: CNAHFLM) -> None:
    arguments = ("again", OPTIONS)
    stored = {request_key("generate_until", arguments, n): Response(str(n), 1) for n in range(3)}
    one = Instance("generate_until", {}, arguments, 0, ("jbb", 0, 3))
    assert Replay(lm, stored, {}).generate_until([one] * 3) == ["0", "1", "2"]
