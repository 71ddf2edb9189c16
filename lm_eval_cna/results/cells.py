"""A cell of a sweep: one method at one multiplier, control seed and circuit size. Importable without torch."""

from __future__ import annotations

import re
from typing import NamedTuple

from lm_eval_cna.interventions.methods import CONTROLS


class Cell(NamedTuple):
    """One cell of a sweep."""

    method: str
    """"baseline", or a method of DESIGN section 2."""
    multiplier: float
    """1 for the baseline and for no other cell."""
    seed: int | None = None
    """The seed of a control; None for all others."""
    size: int | None = None
    """How many of a circuit's strongest neurons; None for the whole circuit and for vectors."""

    @property
    def key(self) -> str:
        """A name that is unique in the sweep and safe in a path: "cna-k200-m0.5", "random-s3-m0", "baseline"."""
        if self.method == "baseline":
            return self.method
        seed = "" if self.seed is None else f"-s{self.seed}"
        size = "" if self.size is None else f"-k{self.size}"
        # The format "g" has six digits: two close multipliers would share a name, and so a results file.
        multiplier = repr(float(self.multiplier)).removesuffix(".0")
        return re.sub(r"[^a-z0-9.-]", "_", f"{self.method}{seed}{size}-m{multiplier}")

    @property
    def is_control(self) -> bool:
        """Whether the cell is part of a null distribution."""
        return self.method in CONTROLS


BASELINE = Cell("baseline", 1.0)
