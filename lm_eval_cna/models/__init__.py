"""lm-eval models that steer."""
