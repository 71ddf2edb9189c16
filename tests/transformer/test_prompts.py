"""Discovery's token ids are the evaluation's: compared with lm-eval's own HFLM, token for token."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers as tf
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from lm_eval_cna.errors import ContrastError
from lm_eval_cna.transformer.prompts import (
    Rendering,
    chat_template_of,
    chat_template_sha256,
    encode_prompts,
    pad_left,
    pad_token_id,
    render_prompts,
)
from tests.helpers.checkpoints import byte_tokenizer

PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[bot]{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + PLAIN
THINKING = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<no-think>{% endif %}"
PROMPTS = ["How do I bake a cake?", " leading and trailing white space \n", "two\nlines", "übergroß 你好", "x"]


def hflm(tokenizer: Any, **arguments: Any) -> HFLM:
    config = tf.LlamaConfig(
        vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return HFLM(pretrained=tf.LlamaForCausalLM(config), tokenizer=tokenizer, **arguments)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ConfigurableTask:
    """A zero-shot task whose prompt is a column, as jbb_harmful_refusal is."""
    path = tmp_path_factory.mktemp("task") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"Goal": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return ConfigurableTask(
        config={
            "task": "prompts",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{Goal}}",
            "doc_to_target": "",
            "generation_kwargs": {"until": [], "do_sample": False},
        }
    )


def as_evaluated(lm: HFLM, task: ConfigurableTask, *, chat: bool) -> list[str]:
    """The strings that lm-eval hands to `generate_until`."""
    return [
        task.fewshot_context(doc, 0, apply_chat_template=chat, chat_template=lm.apply_chat_template if chat else None)
        for doc in task.test_docs()
    ]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [None, PLAIN, WITH_BOS])
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_same_tokens_as_the_evaluation(
    adds_bos: bool, template: str | None, add_bos_token: bool | None, task: Any
) -> None:
    tokenizer = byte_tokenizer(chat_template=template, adds_bos=adds_bos)
    lm = hflm(tokenizer, add_bos_token=add_bos_token)
    texts = as_evaluated(lm, task, chat=template is not None)
    assert render_prompts(PROMPTS, tokenizer) == texts
    rows = encode_prompts(texts, tokenizer, add_bos_token=add_bos_token)
    assert rows == Rendering(add_bos_token=add_bos_token).encode(PROMPTS, tokenizer)
    ids, mask = pad_left(rows, pad_token_id(tokenizer))
    their_ids, their_mask = lm.tok_batch_encode(texts)
    assert torch.equal(ids, their_ids) and torch.equal(mask, their_mask)
    assert ids[:, -1].tolist() == [row[-1] for row in rows]
    begins = [row.count(tokenizer.bos_token_id) for row in rows]
    assert set(begins) == {int(template == WITH_BOS or (adds_bos and add_bos_token is not False))}


def test_a_tokenizer_without_padding_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    texts = render_prompts(PROMPTS, tokenizer)
    ids, mask = pad_left(encode_prompts(texts, tokenizer), pad_token_id(tokenizer))
    lm = hflm(tokenizer)  # sets a padding token of its own choice
    their_ids, their_mask = lm.tok_batch_encode(texts)
    assert torch.equal(ids, their_ids) and torch.equal(mask, their_mask)


def test_chat_template_arguments(task: Any) -> None:
    tokenizer = byte_tokenizer(chat_template=THINKING)
    lm = hflm(tokenizer, enable_thinking=False)
    ours = render_prompts(PROMPTS, tokenizer, chat_template_args={"enable_thinking": False})
    assert ours == as_evaluated(lm, task, chat=True)
    assert ours[-1] == "[user]x[bot]<no-think>"
    assert render_prompts(PROMPTS, tokenizer, chat_template=False) == PROMPTS


def test_template_hash_is_lm_evals() -> None:
    from lm_eval.utils import hash_string

    tokenizer = byte_tokenizer(chat_template=PLAIN)
    assert chat_template_sha256(tokenizer) == hash_string(PLAIN)
    assert chat_template_sha256(byte_tokenizer(chat_template=None)) is None
    tokenizer.chat_template = {"default": WITH_BOS, "tool_use": PLAIN}
    assert chat_template_of(tokenizer) == WITH_BOS == hflm(tokenizer).chat_template(True)


def test_errors() -> None:
    broken = byte_tokenizer(chat_template="{{ raise_exception('no user role') }}")
    with pytest.raises(ContrastError, match="cannot render a single user message: no user role"):
        render_prompts(["Hi"], broken)
    with pytest.raises(ContrastError, match="no token"):
        encode_prompts([""], byte_tokenizer(adds_bos=False))
