"""Annotations and their import, sampling, prompts, and the synthetic corpus."""
