"""Interventions, which steering applies: circuits and vectors, and their files."""
