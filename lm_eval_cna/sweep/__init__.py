"""A grid of cells, evaluated with lm-eval and kept in a run directory."""
