"""museg_ray: MUSEG (arXiv 2505.20715), timestamp-aware multi-segment grounding by GRPO, as a Ray program."""

__version__ = "0.1.0"
