"""The executor of a sweep computes its answers: in this process, or elsewhere with the same result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol, cast

from lm_eval_cna.files.progress import Progress
from lm_eval_cna.models.steered import Steered
from lm_eval_cna.results.responses import Response
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.sweep.answers import compute
from lm_eval_cna.sweep.batches import ROWS, Batch
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.interventions import rendering_of
from lm_eval_cna.sweep.plan import mode_of
from lm_eval_cna.sweep.prepare import PreparedSweep
from lm_eval_cna.validation.first_token_kl import harmless_kl


class Executor(Protocol):
    """Computes the answers of a sweep and its first-token KL."""

    def prepare(self, prepared: PreparedSweep) -> None:
        """Called before the model is first run to compute anything, the self-check included."""

    def answers(
        self, prepared: PreparedSweep, batches: Sequence[Batch], progress: Progress
    ) -> Iterator[tuple[Batch, list[Response]]]:
        """Compute batches, each once and in any order; each comes with its responses in the order of its rows."""

    def divergence(self, prepared: PreparedSweep) -> list[dict[str, Any]]:
        """First-token KL on harmless prompts, cell by cell: `Divergence` as plain values."""


class ThisProcess:
    """Computes on the model that is loaded in this process."""

    def prepare(self, prepared: PreparedSweep) -> None:
        """Nothing to prepare."""

    def answers(
        self, prepared: PreparedSweep, batches: Sequence[Batch], progress: Progress
    ) -> Iterator[tuple[Batch, list[Response]]]:
        """One batch after another."""
        plan = prepared.plan
        return compute(prepared.lm, plan.settings, batches, plan.prompts, mode=plan.mode)

    def divergence(self, prepared: PreparedSweep) -> list[dict[str, Any]]:
        """All cells in one go."""
        return measure_divergence(prepared.lm, prepared.config, prepared.plan.settings)


def measure_divergence(lm: Steered, config: SweepConfig, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """KL of the first generated token on harmless prompts; lm-eval has no output type for distributions."""
    mode = mode_of(config, lm, settings)
    measured = harmless_kl(
        lm.module,
        lm.tokenizer,
        settings,
        mode="hook" if mode == ROWS else cast(Mode, mode),
        rendering=rendering_of(config, lm),
        batch_size=lm.batch_size,
    )
    return [asdict(divergence) for divergence in measured]
