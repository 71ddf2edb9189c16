"""From activations to a circuit or vectors, and their controls."""
