"""Hostile files for every reader: what a reader may be given, how files are made bad, and what counts as a finding."""
