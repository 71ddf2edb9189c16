"""A decoder-only model as we see it: layers, MLP projections, weights and prompts."""
