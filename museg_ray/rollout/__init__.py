"""Sampling groups of responses from the policy with vLLM."""
