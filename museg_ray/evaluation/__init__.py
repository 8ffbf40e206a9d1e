"""Evaluation on held-out queries: grounding metrics, the blind baseline, and the run over the rollout actors."""
