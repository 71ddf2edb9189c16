"""The cells of a sweep: every method, control, size and multiplier that is evaluated."""

from __future__ import annotations

from lm_eval_cna.interventions.methods import CONTROLS, OF_VECTORS
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.sweep.config import SweepConfig


def plan_cells(config: SweepConfig) -> list[Cell]:
    """All cells of a sweep, the baseline first. It stands once: at m = 1 every method leaves the model untouched."""
    cells = [BASELINE]
    for method in config.compared:
        control = method in CONTROLS
        sizes: tuple[int | None, ...] = config.top_k if method not in OF_VECTORS and config.top_k else (None,)
        for seed in config.control_seeds if control else (None,):
            for size in sizes:
                multipliers = config.controlled_at if control else config.multipliers
                cells += [Cell(method, m, seed, size) for m in multipliers if m != 1.0]
    return cells
