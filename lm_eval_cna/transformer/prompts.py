"""Turn prompts into the token ids that an evaluation uses: chat template, special tokens, left padding.

Discovery must read activations on exactly the token ids that cna-hf evaluates, so this module follows lm-eval 0.4.13
(`HFLM.apply_chat_template`, `HFLM.tok_batch_encode`); a test compares both. White space is kept, as lm-eval does.
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
    """Settings by which a prompt outside of a task becomes token ids, as the prompts of a task do."""

    chat_template: bool = True
    """Whether to apply the tokenizer's chat template, if it has one."""
    chat_template_args: Mapping[str, Any] | None = None
    """Arguments for the template such as `enable_thinking`, like cna-hf's model argument of that name."""
    add_bos_token: bool | None = None
    """Force special tokens on or off, like cna-hf's model argument of that name; None leaves it to the tokenizer."""

    def encode(self, prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            ContrastError: the chat template fails, or a prompt has no tokens.
        """
        texts = render_prompts(
            prompts, tokenizer, chat_template=self.chat_template, chat_template_args=self.chat_template_args
        )
        return encode_prompts(texts, tokenizer, add_bos_token=self.add_bos_token)


def chat_template_of(tokenizer: Any) -> str | None:
    """The chat template that lm-eval applies: the tokenizer's only one, or the one named "default"; None if none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return str(template) if template else None


def chat_template_sha256(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template; None if the tokenizer has none."""
    template = chat_template_of(tokenizer)
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


def render_prompts(
    prompts: Sequence[str],
    tokenizer: Any,
    *,
    chat_template: bool = True,
    chat_template_args: Mapping[str, Any] | None = None,
) -> list[str]:
    """Render each prompt as one user turn, followed by the template's start of the answer, if there is a template.

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

    A chat template often writes this token itself; adding it again, as the reference code does, shifts every
    activation. lm-eval decides for a whole batch by its first text. Here each text decides for itself, which is the
    same for texts of one template and does not depend on the batches.

    Raises:
        ContrastError: a prompt has no tokens.
    """
    bos = getattr(tokenizer, "bos_token", None)
    forced: dict[str, bool] = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}
    rows: list[list[int]] = [[] for _ in texts]
    for written in (False, True):
        chosen = [i for i, text in enumerate(texts) if (isinstance(bos, str) and text.startswith(bos)) is written]
        if chosen:
            # One call for all, since a call costs a fast tokenizer more than a prompt.
            special = {"add_special_tokens": False} if written else forced
            encoded = tokenizer([texts[i] for i in chosen], **special)["input_ids"]
            for i, ids in zip(chosen, encoded, strict=True):
                rows[i] = list(ids)
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise ContrastError("a prompt has no token", got=text, do="remove it, or use a chat template")
    return rows


def pad_token_id(tokenizer: Any) -> int:
    """The padding token that lm-eval chooses; padding is masked, so its value does not matter."""
    for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left, so that the last column has real tokens.

    Returns:
        input_ids and attention_mask, int64 [batch, longest].
    """
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
