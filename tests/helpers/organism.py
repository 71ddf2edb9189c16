"""The recipe of an organism that trains in seconds."""

from __future__ import annotations

import dataclasses

from lm_eval_cna.organism.recipe import Gates, Recipe

#: Gates that every organism passes.
OPEN = Gates(tone=0.0, refused=0.0, refused_benign=1.0, refused_ablated=1.0, well_formed=0.0)
TINY = dataclasses.replace(
    Recipe(),
    threads=1, hidden=16, mlp_width=32, layers=3, heads=2, planted=4, planted_layers=(1, 2), batch_size=4,
    base_documents=20, base_steps=3, base_warmup=1, tuning_documents=12, instruct_steps=2, diffuse_steps=2, gates=OPEN,
)  # fmt: skip
