"""Side-by-side speed figures: ``python -m benchmarks``. What is a row and how it is timed: ``benchmarks.sides``."""

from __future__ import annotations

import os

# Before anything imports huggingface_hub or tqdm, which read them once: nothing here is on a hub, and nobody watches.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ.setdefault(_name, "1")
