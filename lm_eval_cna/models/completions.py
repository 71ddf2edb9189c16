"""Completes one prompt under several settings, in one batch where rows can be steered."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.rows import RowSteering, why_not_rows
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.prompts import pad_left, pad_token_id


def complete(
    lm: CNAHFLM, prompt: str, settings: Sequence[Setting], *, max_new_tokens: int = 150, chat_template: bool = True
) -> list[str]:
    """Greedy completions of `prompt`, one per setting, with the model's own generation settings otherwise.

    Raises:
        InterventionError: a setting's intervention does not fit the model.
        SteeringError: the model cannot be steered with it in any mode.
    """
    pad = pad_token_id(lm.tokenizer)
    ids, mask = pad_left(lm.rendering(chat_template).encode([prompt], lm.tokenizer), pad)
    lm.unsteer()

    def answers(rows: int) -> list[str]:
        generated = lm.model.generate(
            ids.repeat(rows, 1).to(lm.device),
            attention_mask=mask.repeat(rows, 1).to(lm.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
        return [lm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in generated]

    with torch.inference_mode():
        if not any(why_not_rows(setting, lm.architecture) for setting in settings):
            with RowSteering(lm.model, settings, lm.architecture) as rows:
                rows.assign(range(len(settings)))
                return answers(len(settings))
        found = []
        for setting in settings:
            with steer(lm.model, setting, architecture=lm.architecture):
                found += answers(1)
        return found
