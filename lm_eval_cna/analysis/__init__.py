"""Statistics and profiles over results. Needs neither torch nor transformers."""
