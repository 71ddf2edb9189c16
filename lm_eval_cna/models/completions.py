"""Completions of one prompt under several settings, from one batch. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.prompts import encode_batch, pad_token_id, render_prompts
from lm_eval_cna.steering import Setting
from lm_eval_cna.steering_rows import RowSteering


def complete(
    lm: CNAHFLM, prompt: str, settings: Sequence[Setting], *, max_new_tokens: int = 150, chat_template: bool = True
) -> list[str]:
    """Greedy completions of `prompt`, one per setting, with the model's own generation settings otherwise.

    Raises:
        InterventionError: a setting's intervention does not fit the model.
    """
    rendered = render_prompts(
        [prompt], lm.tokenizer, chat_template=chat_template, chat_template_args=lm.chat_template_args
    )
    ids, mask = encode_batch(rendered, lm.tokenizer, add_bos_token=lm.add_bos_token)
    ids, mask = (tensor.repeat(len(settings), 1).to(lm.device) for tensor in (ids, mask))
    lm.unsteer()
    with RowSteering(lm.model, settings, lm.architecture) as rows, torch.inference_mode():
        rows.assign(range(len(settings)))
        generated = lm.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad_token_id(lm.tokenizer),
        )
    return [lm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in generated]
