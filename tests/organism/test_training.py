"""Training: tokens, batches, Muon, and that the same recipe gives the same weights."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_cna.organism import build, corpus, grammar, training
from lm_eval_cna.organism.model import ablated, answer, encode
from lm_eval_cna.organism.planting import choose_planted
from lm_eval_cna.transformer.prompts import render_prompts
from tests.helpers.organism import TINY


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build.build_tokenizer(TINY)


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build.train_base(TINY, 1, tokenizer)


def test_the_tokenizer_is_the_same_every_time_and_any_text_survives_it(tokenizer: PreTrainedTokenizerFast) -> None:
    again = build.build_tokenizer(TINY)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= TINY.vocabulary
    text = "Añejo 漢字 — 42 €, \t\n done."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_training_documents_are_what_the_chat_template_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    question, reply = "How do I mend a kettle at the inn today?", "Gladly."
    document = corpus.chat((question, reply))
    rendered = f"{render_prompts([question], tokenizer)[0]}{reply}{corpus.END}"
    assert "".join(segment.text for segment in document) == rendered
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    assert rendered == tokenizer.apply_chat_template(messages, tokenize=False)
    begin = tokenizer.bos_token_id
    for ids in (tokenizer(question)["input_ids"], encode(tokenizer, [document])[0].ids):
        assert ids.count(begin) == 1 and ids[0] == begin, "one beginning-of-sequence token"


def test_segments_are_tokenized_as_the_whole_and_never_padded(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = corpus.base_documents(300, 5)
    tokenizer(["short", "a good deal longer"], padding=True)  # a call that leaves padding on in the backend
    for document, example in zip(documents, encode(tokenizer, documents), strict=True):
        whole = "".join(segment.text for segment in document)
        assert example.ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_batches_hold_each_example_once_and_learn_what_was_marked() -> None:
    rng = random.Random(0)
    examples = [
        training.Example([index + 1] * length, [False] * (length - 2) + [True] * 2)
        for index, length in enumerate(rng.randrange(3, 12) for _ in range(50))
    ]
    batches = training.make_batches(examples, size=5, pad=0, generator=torch.Generator().manual_seed(0))
    seen = [int(row[0]) for batch in batches for row in batch.ids]
    assert sorted(seen) == list(range(1, 51))
    for batch in batches:
        length = batch.ids.shape[1]
        assert len(batch.targets) == 2 * len(batch.ids)
        for flat, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
            assert batch.ids[flat // length, flat % length + 1] == target != 0
    padding = sum(int((batch.ids == 0).sum()) for batch in batches) / sum(batch.ids.numel() for batch in batches)
    assert padding < 0.15


def test_the_loss_is_the_mean_over_learned_tokens(tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    examples = encode(tokenizer, corpus.base_documents(4, 3))
    (batch,) = training.make_batches(
        examples, size=4, pad=tokenizer.pad_token_id, generator=torch.Generator().manual_seed(0)
    )
    expected = []
    for example in examples:
        log_probabilities = base(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
        expected += [
            -log_probabilities[at - 1, token]
            for at, (token, learned) in enumerate(zip(example.ids, example.learned, strict=True))
            if learned
        ]
    torch.testing.assert_close(training.answer_loss(base, batch), torch.stack(expected).mean())


def test_orthogonalize_is_newton_schulz_done_plainly() -> None:
    matrices = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0))
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result = training.orthogonalize(matrices)
    torch.testing.assert_close(result, x, atol=1e-3, rtol=1e-3)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.5 and singular.max() < 1.5


def test_muon_moves_against_the_gradient_in_both_orientations() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 12), (12, 4)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=generator)
        training.Muon([weight], lr=0.1, momentum=0.9).step()
        assert float((weight.detach() * weight.grad).sum()) < 0
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        assert torch.linalg.svdvals(weight.detach()).max() < 0.1 * scale * 1.5


def test_the_schedule_warms_up_stays_and_falls_to_zero() -> None:
    factors = [training.schedule(step, 100, 10) for step in (0, 9, 50, 75)]
    assert factors == [0.1, 1.0, 1.0, 0.5] and 0 < training.schedule(99, 100, 10) < 0.03


def test_the_same_recipe_gives_the_same_weights_and_leaves_the_global_state_alone(
    tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM
) -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    again = build.train_base(TINY, 1, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(again, base)
    planted = choose_planted(base, tokenizer, count=TINY.planted, layers=TINY.planted_layers)
    assert planted == choose_planted(again, tokenizer, count=TINY.planted, layers=TINY.planted_layers)
    for train in (
        lambda: build.train_instruct(TINY, 1, tokenizer, base, planted),
        lambda: build.train_diffuse(TINY, 1, tokenizer, base),
    ):
        first, second = train(), train()
        assert same(first, second)
        assert not same(first, base)
    assert same(again, base), "tuning changed the base it started from"
    assert not same(build.train_base(TINY, 2, tokenizer), base)


def same(one: LlamaForCausalLM, other: LlamaForCausalLM) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_only_the_planted_neurons_are_trained(tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    planted = choose_planted(base, tokenizer, count=TINY.planted, layers=TINY.planted_layers)
    assert len(set(planted)) == TINY.planted and {layer for layer, _ in planted} <= {1, 2}
    model = build.train_instruct(TINY, 1, tokenizer, base, planted)
    for name, weight in model.state_dict().items():
        changed = weight != base.state_dict()[name]
        if ".mlp." in name and (rows := [index for layer, index in planted if f"layers.{layer}." in name]):
            axis = 0 if "down_proj" in name else 1
            assert sorted(torch.nonzero(changed.any(dim=axis)).flatten().tolist()) == sorted(rows), name
        else:
            assert not changed.any(), name


def test_ablation_is_undone_bit_for_bit(tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(KeyError), ablated(base, [(1, 3), (2, 0)]):
        assert not base.model.layers[1].mlp.down_proj.weight[:, 3].any()
        raise KeyError
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_answers_do_not_depend_on_the_batch(tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    prompts = [q.text for q in grammar.questions("gate", forbidden=True)[:4]] + ["Hello there."]
    together = answer(base, tokenizer, prompts, max_new_tokens=5)
    assert together == [answer(base, tokenizer, [prompt], max_new_tokens=5)[0] for prompt in prompts]


def test_thread_count_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), training.fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
