"""Faults put into real runs: what survives, what is lost, what comes out wrong."""
