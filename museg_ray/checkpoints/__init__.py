"""Whole states of a run, on disk."""
