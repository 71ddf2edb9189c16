"""The rows, in the order of the table."""

from __future__ import annotations

from importlib import import_module

for _name in ("discovery", "sweep", "scaling", "steering", "mmlu", "gpu"):
    import_module(f"benchmarks.rows.{_name}")
