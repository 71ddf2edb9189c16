"""Contrastive Neuron Attribution inside lm-evaluation-harness: find a circuit, steer it, measure what it does."""

__version__ = "0.1.0"
