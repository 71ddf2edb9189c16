"""Greedy generation in shared batches: every row's text is what its cell gives alone, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lm_eval_cna.errors import ConfigError, SteeringError
from lm_eval_cna.models.decoding import greedy
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.shared_batches.capacity import why_not_shared
from lm_eval_cna.models.shared_batches.generation import Completion, GenerationJob, SharedGenerator
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.setting import Setting
from tests.helpers.checkpoints import save_llama
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, VOCAB, left_unchanged, tiny
from tests.helpers.requests import instances, loaded

#: Many tokens end a response, so that random models, which never stop of their own will, stop at different times.
ENDS = [2, *range(20, 28)]
LENGTHS = (3, 14, 22)
NEW = 24


def prompts(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist()) for length in lengths]


def settings_of(lm: CNAHFLM) -> list[Setting]:
    chosen = circuit(lm.architecture)
    caa, residual = vectors(lm.architecture), vectors(lm.architecture, place="block")
    circuits = [Setting(chosen, m) for m in (0.0, 0.5, 1.0, 2.0)]
    return [*circuits, Setting(), Setting(caa, 0.5, 0.2), Setting(caa, 2.0, 0.2), Setting(residual, 0.0, 0.5)]


def alone(lm: CNAHFLM, job: GenerationJob, setting: Setting) -> list[int]:
    """The tokens that transformers generates for one prompt, in a batch of its own."""
    ids = torch.tensor([job.ids])
    with steer(lm.model, setting), torch.inference_mode():
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_length=len(job.ids) + job.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return list(out[0, len(job.ids) :].tolist())


def check_rows(lm: CNAHFLM, jobs: Sequence[GenerationJob], settings: Sequence[Setting]) -> list[list[int]]:
    """Compare a shared batch with its rows alone; returns the rows' tokens."""
    wanted = [alone(lm, job, settings[job.setting]) for job in jobs]
    with SharedGenerator(lm, settings) as generator:
        got = generator.generate(jobs)
    assert [each.text for each in got] == [lm.tokenizer.decode(row, skip_special_tokens=True) for row in wanted]
    assert [each.tokens for each in got] == [len(row) for row in wanted]
    return wanted


@pytest.mark.parametrize("family", DENSE)
def test_rows_of_different_settings_equal_the_rows_alone(family: str) -> None:
    lm = loaded(tiny(family))
    assert why_not_shared(lm, {"until": []}) is None
    settings = settings_of(lm)
    jobs = [GenerationJob(ids, position, NEW) for ids in prompts() for position in range(len(settings))]
    check_rows(lm, jobs, settings)
    # Untrained models repeat themselves; where they must not, they come upon the end tokens at different times.
    lm.model.generation_config.update(eos_token_id=ENDS, no_repeat_ngram_size=1)
    wanted = check_rows(lm, jobs, settings)
    assert len({len(row) for row in wanted}) > 2, "the rows must end at different times for the test to mean something"
    assert len({tuple(row) for row in wanted}) > len(LENGTHS), "steering must show"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("window", [40, 100])
def test_sliding_windows_that_are_filled_on_the_way_or_never(family: str, window: int) -> None:
    model = tiny(family)
    model.config.sliding_window = window
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = window
    lm = loaded(model)
    lm.model.generation_config.update(eos_token_id=ENDS, no_repeat_ngram_size=1)
    settings = settings_of(lm)
    check_rows(lm, [GenerationJob(ids, p, NEW) for ids in prompts() for p in range(len(settings))], settings)


PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 1.1},
    "n-grams": {"no_repeat_ngram_size": 2},
    "new tokens": {"min_new_tokens": 9},
    "length": {"min_length": 21},
    "suppressed": {"suppress_tokens": [53, 65], "begin_suppress_tokens": [66, 84]},
    "bad words": {"bad_words_ids": [[58], [53, 65], [50, 50], [3]]},
    "bias": {"sequence_bias": [[[44], 0.8], [[45, 46], 2.0]]},
    "forced end": {"forced_eos_token_id": 2},
    "decay": {"exponential_decay_length_penalty": (4, 1.3)},
    "renormalised": {"renormalize_logits": True, "remove_invalid_values": True, "repetition_penalty": 1.2},
    "all at once": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "bad_words_ids": [[58]]},
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_the_models_own_generation_settings_apply(case: str) -> None:
    lm = loaded(tiny("llama", seed=3))
    lm.model.generation_config.update(eos_token_id=ENDS, **PROCESSORS[case])
    settings = settings_of(lm)[:5]
    jobs = [
        GenerationJob(ids, position, NEW - 9 * (position % 2))
        for ids in [*prompts(), (5, 6, 5, 6, 5), (5, 6, 5, 6, 5, 5, 6)]
        for position in range(len(settings))
    ]
    with_it = check_rows(lm, jobs, settings)
    lm.model.generation_config = type(lm.model.generation_config)(eos_token_id=ENDS)
    assert with_it != [alone(lm, job, settings[job.setting]) for job in jobs], "the setting must change something"


def test_padding_is_not_penalised() -> None:
    """The quirk that this loop does not have: the padding token counts as a repetition in padded rows only."""
    lm = loaded(tiny("llama", seed=3))
    head = lm.model.get_output_embeddings()
    lm.model.generation_config.update(eos_token_id=ENDS, repetition_penalty=5.0)
    bias = torch.zeros(VOCAB)
    bias[0] = 30.0  # the padding token is every row's first choice, by far, until it has been generated
    head.bias = nn.Parameter(bias)
    rows = check_rows(lm, [GenerationJob(ids, 0, NEW) for ids in prompts()], [Setting()])
    assert all(row[0] == 0 for row in rows)


@pytest.mark.parametrize("look_every", [1, 3, 100])
@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_looking_late_changes_nothing(monkeypatch: pytest.MonkeyPatch, look_every: int, family: str) -> None:
    lm = loaded(tiny(family))
    lm.model.generation_config.update(eos_token_id=ENDS, repetition_penalty=1.1, no_repeat_ngram_size=4)
    monkeypatch.setattr(greedy, "look_interval", lambda device: look_every)
    settings = settings_of(lm)
    check_rows(lm, [GenerationJob(ids, p, NEW - p) for ids in prompts() for p in range(len(settings))], settings)


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = loaded(tiny("llama"))
    sizes: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with SharedGenerator(lm, [Setting()]) as generator:
        got = generator.generate(
            [GenerationJob(ids, 0, limit) for ids, limit in zip(prompts(), (2, 5, 9), strict=True)]
        )
    assert [each.tokens for each in got] == [2, 5, 9]
    assert sizes == [3] * 2 + [2] * 3 + [1] * 4


def test_under_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapter = LoraConfig(target_modules=["down_proj", "q_proj"], r=4, init_lora_weights=False)
    lm = loaded(get_peft_model(tiny("llama"), adapter).eval())
    assert why_not_shared(lm, {"until": []}) is None
    settings = settings_of(lm)[:4]
    check_rows(lm, [GenerationJob(ids, p, NEW) for ids in prompts() for p in range(len(settings))], settings)


# Against lm-eval's own path, text to text.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"), seed=5)


@pytest.fixture
def lm(checkpoint: Path) -> CNAHFLM:
    return CNAHFLM(pretrained=str(checkpoint), device="cpu", batch_size=1)


TEXTS = ["How do I bake a cake?", "Hello", "A longer prompt, so that the batch needs padding on its left side."]


def harness(lm: CNAHFLM, setting: Setting, texts: Sequence[str], gen_kwargs: dict[str, Any]) -> list[str]:
    """What cna-hf answers under one setting."""
    lm.steer(setting)
    requests = instances("generate_until", [(text, dict(gen_kwargs)) for text in texts])
    got = lm.generate_until(requests, disable_tqdm=True)
    lm.unsteer()
    return got


def share(
    lm: CNAHFLM, settings: Sequence[Setting], texts: Sequence[str], stop: Sequence[str], new: int
) -> list[list[Completion]]:
    jobs = [
        GenerationJob(tuple(lm.tok_encode(text)), position, new, tuple(stop))
        for position in range(len(settings))
        for text in texts
    ]
    with SharedGenerator(lm, settings) as generator:
        got = generator.generate(jobs)
    return [got[start : start + len(texts)] for start in range(0, len(got), len(texts))]


def pieces(texts: Sequence[str], size: int) -> list[str]:
    """A piece of each text that has one without half characters, from its middle on: to be used as stop strings.

    Half of a character is decoded differently in the few last tokens that the harness looks at than in the text; it
    then stops a batch of one row where it does not stop a batch of several.
    """
    found = (
        next((text[at : at + size] for at in range(len(text) // 2, len(text)) if text[at : at + size].isascii()), "")
        for text in texts
    )
    return [piece for piece in found if len(piece) == size]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_text_equals_the_harness(checkpoint: Path, batch_size: int, size: int) -> None:
    lm = CNAHFLM(pretrained=str(checkpoint), device="cpu", batch_size=batch_size)
    chosen, caa = circuit(lm.architecture, per_layer=16), vectors(lm.architecture)
    settings = [Setting(chosen, 0.0), Setting(chosen, 2.0), Setting(), Setting(caa, 0.0, 0.3)]
    free = {"until": [], "do_sample": False, "max_gen_toks": 30}
    plain = [harness(lm, setting, TEXTS, free) for setting in settings]
    stop = pieces([text for row in plain for text in row][:6], size) if size else []
    wanted = [harness(lm, setting, TEXTS, {**free, "until": stop}) for setting in settings] if size else plain
    assert (wanted == plain) == (not size)
    got = share(lm, settings, TEXTS, stop, 30)
    assert [[each.text for each in row] for row in got] == wanted
    assert not size or min(each.tokens for row in got for each in row) < 30


def test_several_end_tokens_and_the_tokenizers_own(lm: CNAHFLM) -> None:
    [[free]] = share(lm, [Setting()], TEXTS[:1], (), 30)
    tokens = alone(lm, GenerationJob(tuple(lm.tok_encode(TEXTS[0])), 0, 30), Setting())
    assert free.tokens == len(tokens)
    lm.model.generation_config.eos_token_id = [2, tokens[7], tokens[12]]
    kwargs = {"until": [], "do_sample": False, "max_gen_toks": 30}
    [[ended]] = share(lm, [Setting()], TEXTS[:1], (), 30)
    assert ended.tokens == tokens.index(tokens[7]) + 1 or ended.tokens == tokens.index(tokens[12]) + 1
    assert [ended.text] == harness(lm, Setting(), TEXTS[:1], kwargs)
    # The tokenizer's end token ends a row even where the generation settings do not name it.
    lm.model.generation_config.eos_token_id = 1
    lm.tokenizer.eos_token = lm.tokenizer.convert_ids_to_tokens(tokens[9])
    [[ended]] = share(lm, [Setting()], TEXTS[:1], (), 30)
    assert ended.tokens == tokens.index(tokens[9]) + 1
    assert [ended.text] == harness(lm, Setting(), TEXTS[:1], kwargs)


@pytest.mark.parametrize("kind", ["token", "string"])
def test_thinking_is_cut_as_the_harness_cuts_it(lm: CNAHFLM, kind: str) -> None:
    tokens = alone(lm, GenerationJob(tuple(lm.tok_encode(TEXTS[0])), 0, 30), Setting())
    middle = next(token for token in tokens[8:] if token > 36)
    lm.think_end_token = middle if kind == "token" else lm.tokenizer.decode([middle])
    [[got]] = share(lm, [Setting()], TEXTS[:1], (), 30)
    assert [got.text] == harness(lm, Setting(), TEXTS[:1], {"until": [], "do_sample": False, "max_gen_toks": 30})
    assert len(got.text) < len(lm.tok_decode(tokens))


@pytest.mark.parametrize("mode", ["fold", "hook", "auto"])
def test_one_setting_around_the_batch(lm: CNAHFLM, mode: Any) -> None:
    chosen, caa = circuit(lm.architecture, per_layer=16), vectors(lm.architecture)
    settings = [Setting(chosen, 0.0), Setting(), Setting(chosen, 2.0)]
    if mode != "fold":
        settings.append(Setting(caa, 0.0, 0.3))
    shared = share(lm, settings, TEXTS, (), 12)
    jobs = [
        [GenerationJob(tuple(lm.tok_encode(text)), position, 12) for text in TEXTS] for position in range(len(settings))
    ]
    with left_unchanged(lm.model), SharedGenerator(lm, settings, mode=mode) as generator:
        assert [generator.generate(each) for each in jobs] == shared
        with pytest.raises(SteeringError, match="settings in one batch"):
            generator.generate([jobs[0][0], jobs[1][0]])


def test_near_ties_are_counted_per_row(lm: CNAHFLM) -> None:
    """Two tokens with one and the same output vector tie wherever they win."""
    job = GenerationJob(tuple(lm.tok_encode(TEXTS[0])), 0, 30)
    other = GenerationJob(tuple(lm.tok_encode(TEXTS[1])), 0, 30)
    with SharedGenerator(lm, [Setting()]) as generator:
        assert [each.near_ties for each in generator.generate([job, other])] == [0, 0]
    tokens = alone(lm, job, Setting())
    likely = max(set(tokens), key=tokens.count)
    twin = next(token for token in range(40, 250) if token not in tokens)
    with torch.no_grad():
        lm.model.lm_head.weight[twin] = lm.model.lm_head.weight[likely]
    with SharedGenerator(lm, [Setting()]) as generator:
        first = generator.generate([job, other])
        assert generator.generate([job, other]) == first
    again = alone(lm, job, Setting())
    assert first[0].near_ties == sum(token in (likely, twin) for token in again) > 0


def test_a_generator_undoes_what_was_there_and_cleans_up(lm: CNAHFLM) -> None:
    chosen = circuit(lm.architecture, per_layer=16)
    lm.steer(Setting(chosen, 0.0))
    for ids, new, says in (((), 5, "no token"), ((1,), 0, "max_new_tokens; got 0")):
        with pytest.raises(ConfigError, match=says):
            GenerationJob(ids, 0, new)
    with pytest.raises(SteeringError, match="mode; got 'rose'"):
        SharedGenerator(lm, [Setting()], mode="rose")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="boom"), SharedGenerator(lm, [Setting(chosen, 0.0)]) as generator:
        assert generator.generate([]) == []
        raise RuntimeError("boom")
    lm.steer(Setting(chosen, 2.0))
