"""A model that computes batches for a sweep in another process: loaded once, then given one batch after another.

It does not use Ray. Every method takes and returns plain values. An error that a user can put right is returned as a
value too, so that its class need not be importable on the other side.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any

Reply = dict[str, Any]


class Worker:
    """One loaded model. Heavy libraries are imported when it is opened, on the machine where that happens.

    Every method returns {"value": ...}, or {"error": class of `lm_eval_cna.errors`, "message": text, "node": machine}.

    Args:
        lm: the model, if it is loaded already.

    Attributes:
        interventions: what the sweep's cells steer with, once `open` has returned.
        settings: one for each cell.
    """

    def __init__(self, lm: Any = None) -> None:
        self._lm = lm

    def open(self, packed_sweep: Mapping[str, Any]) -> Reply:
        """Load the model and the interventions of a packed sweep, and check that both are what the sweep has.

        Returns:
            The machine's name.
        """
        return reply_of(lambda: self._open(packed_sweep))

    def compute(self, packed: Mapping[str, Any]) -> Reply:
        """Compute one batch.

        Returns:
            Packed responses.
        """
        return reply_of(lambda: self._compute(packed))

    def divergence(self) -> Reply:
        """First-token KL on harmless prompts of every cell.

        Returns:
            What `measure_divergence` gives.
        """
        return reply_of(self._divergence)

    def _open(self, packed_sweep: Mapping[str, Any]) -> str:
        from lm_eval_cna.errors import RunError
        from lm_eval_cna.results.cells import Cell
        from lm_eval_cna.sweep.config import parse_config
        from lm_eval_cna.sweep.executors.transfer import unpack_interventions, versions
        from lm_eval_cna.sweep.loading import load

        for name, here in versions().items():
            if here != packed_sweep["versions"][name]:
                raise RunError(
                    f"another version of {name}", got=here, allowed=f"{packed_sweep['versions'][name]}, the sweep's"
                )
        self._mode = packed_sweep["mode"]
        self._config = parse_config(packed_sweep["config"])
        self.interventions = unpack_interventions(packed_sweep)
        self._lm = self._lm or load(self._config)
        self.settings = [self.interventions.setting(Cell(**cell)) for cell in packed_sweep["cells"]]
        for setting, mode, context in zip(self.settings, packed_sweep["modes"], packed_sweep["contexts"], strict=True):
            if self._lm.fingerprint_of(setting, mode) != context:
                raise RunError(
                    f"{self._config.model} is another model here than where the sweep was begun",
                    do="give all machines the same files: weights, precision, tokenizer and generation_config count",
                )
        return platform.node()

    def _compute(self, packed: Mapping[str, Any]) -> list[list[Any]]:
        from lm_eval_cna.sweep.answers import compute
        from lm_eval_cna.sweep.executors.transfer import pack_responses, unpack_batch
        from lm_eval_cna.sweep.requests import Prompts

        batch = unpack_batch(packed)
        prompts = Prompts(self._lm, batch.requests)
        ((_, responses),) = compute(self._lm, self.settings, [batch], prompts, mode=self._mode)
        return pack_responses(responses)

    def _divergence(self) -> list[dict[str, Any]]:
        from lm_eval_cna.sweep.executors.base import measure_divergence

        return measure_divergence(self._lm, self._config, self.settings)


def reply_of(work: Callable[[], Any]) -> Reply:
    """The result of the work, or an error that a user can put right, as plain values."""
    from lm_eval_cna.errors import CNAError, out_of_memory

    try:
        return {"value": work()}
    except CNAError as error:
        return _failure(type(error).__name__, str(error))
    except Exception as error:
        if (message := out_of_memory(error)) is None:
            raise
        return _failure("RunError", message)


def _failure(kind: str, message: str) -> Reply:
    return {"error": kind, "message": message, "node": platform.node()}
