"""Contrast sets: two lists of prompts that differ in one behaviour."""
