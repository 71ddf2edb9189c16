"""Metrics on single responses: refusal, quality, outcome. Needs neither torch nor transformers."""
