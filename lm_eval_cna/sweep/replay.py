"""An lm-eval model that answers from the response store, so that lm-eval itself evaluates each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import LM

from lm_eval_cna.errors import RunError
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.responses import Response
from lm_eval_cna.sweep.requests import in_order


class Replay(LM):  # type: ignore[misc]  # lm-eval carries no type information
    """Answers the requests of one cell from its stored responses.

    Args:
        lm: the model that computed them; only renders prompts here.
        answers: the cell's responses, by request key.
        info: the entry of model and setting in the results file.
    """

    def __init__(self, lm: Steered, answers: Mapping[str, Response], info: dict[str, Any]) -> None:
        super().__init__()
        self._lm = lm
        self._answers = answers
        self._info = info
        # lm-eval asks these of any model it reports on.
        self.config, self.tokenizer, self.batch_sizes = lm.config, lm.tokenizer, lm.batch_sizes

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The stored texts."""
        return self._replay(requests)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The stored pairs."""
        return self._replay(requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The stored numbers."""
        return self._replay(requests)

    @property
    def tokenizer_name(self) -> str:
        """The model's own."""
        return self._lm.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The model's own."""
        return self._lm.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own."""
        return self._lm.chat_template(chat_template)

    def get_model_info(self) -> dict[str, Any]:
        """The model's information under the cell's setting."""
        return self._info

    def _replay(self, requests: list[Any]) -> list[Any]:
        found = []
        for instance, key in zip(requests, in_order(requests), strict=True):
            if key not in self._answers:
                raise RunError(
                    f"{instance.task_name} asked something else than when its requests were collected",
                    got=f"document {instance.doc_id}",
                    do="its prompts are drawn at random; a sweep needs a task whose prompts are the same in every cell",
                )
            found.append(self._answers[key].value)
        return found
