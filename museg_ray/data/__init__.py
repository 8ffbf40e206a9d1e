"""Annotations, sampling, prompts, and the synthetic corpus."""
