"""Prompts as the evaluated model sees them: chat template, special tokens, left padding.

Discovery must read the activations of exactly the token ids that cna-hf computes when it evaluates, so
the rules here are those of lm-eval 0.4.13 (`HFLM.apply_chat_template` and `HFLM.tok_batch_encode`); a test compares
the two token for token. Nothing is stripped: a task renders its prompts as they are, and so do we.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lm_eval_cna.errors import ContrastError


@dataclass(frozen=True)
class Rendering:
    """How a prompt that is no task's becomes token ids: the same as an evaluation's prompts do."""

    chat_template: bool = True
    """Apply the tokenizer's chat template, if it has one."""
    chat_template_args: Mapping[str, Any] | None = None
    """Passed to the template (`enable_thinking`, say), as cna-hf's model argument of that name."""
    add_bos_token: bool | None = None
    """Force special tokens on or off, as cna-hf's model argument of that name; None leaves it to the tokenizer."""

    def encode(self, prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            ContrastError: the chat template fails, or a prompt has no token.
        """
        texts = render_prompts(
            prompts, tokenizer, chat_template=self.chat_template, chat_template_args=self.chat_template_args
        )
        return encode_prompts(texts, tokenizer, add_bos_token=self.add_bos_token)


def chat_template_of(tokenizer: Any) -> str | None:
    """The chat template that lm-eval applies: the tokenizer's own, the one named "default" of several, or none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return str(template) if template else None


def chat_template_sha256(tokenizer: Any) -> str | None:
    """Hash of the chat template, or None where the tokenizer has none."""
    template = chat_template_of(tokenizer)
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


def render_prompts(
    prompts: Sequence[str],
    tokenizer: Any,
    *,
    chat_template: bool = True,
    chat_template_args: Mapping[str, Any] | None = None,
) -> list[str]:
    """Render prompts as one user turn each, followed by the template's opening of the answer.

    Args:
        prompts: the prompts, unchanged.
        tokenizer: a transformers tokenizer.
        chat_template: apply the tokenizer's chat template if it has one; without, a prompt is its own rendering.
        chat_template_args: passed to the template (`enable_thinking`, say), as cna-hf's model argument of that name.

    Raises:
        ContrastError: the chat template fails on a single user message.
    """
    if not prompts or not chat_template or chat_template_of(tokenizer) is None:
        return list(prompts)
    from jinja2.exceptions import TemplateError

    try:
        rendered: list[str] = tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            tokenize=False,
            add_generation_prompt=True,
            continue_final_message=False,
            **(chat_template_args or {}),
        )
        return rendered
    except TemplateError as error:
        raise ContrastError(
            f"the tokenizer's chat template cannot render a single user message: {error}", do="try --no-chat-template"
        ) from error


def encode_prompts(texts: Sequence[str], tokenizer: Any, *, add_bos_token: bool | None = None) -> list[list[int]]:
    """Token ids of rendered prompts, with one beginning-of-sequence token where the tokenizer adds one.

    A chat template often writes that token itself; adding it a second time, as the reference code does, shifts every
    activation. lm-eval looks at the first text of a batch to decide for all; here every text decides for itself, which
    is the same for the texts of one template and does not depend on how they are batched.

    Args:
        texts: rendered prompts.
        tokenizer: a transformers tokenizer.
        add_bos_token: force special tokens on or off, as cna-hf's model argument of that name; None leaves it to the
            tokenizer.

    Raises:
        ContrastError: a prompt has no token.
    """
    bos = getattr(tokenizer, "bos_token", None)
    forced: dict[str, bool] = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}
    rows: list[list[int]] = [[] for _ in texts]
    for written in (False, True):
        chosen = [i for i, text in enumerate(texts) if (isinstance(bos, str) and text.startswith(bos)) is written]
        if chosen:
            # One call for all: a fast tokenizer spends more on a call than on a prompt.
            special = {"add_special_tokens": False} if written else forced
            encoded = tokenizer([texts[i] for i in chosen], **special)["input_ids"]
            for i, ids in zip(chosen, encoded, strict=True):
                rows[i] = list(ids)
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise ContrastError("a prompt has no token", got=text, do="remove it, or use a chat template")
    return rows


def pad_token_id(tokenizer: Any) -> int:
    """The padding token that lm-eval settles on; which one does not matter, since padding is masked."""
    for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left, so that the last column is real: (input_ids, attention_mask), int64 [batch, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
