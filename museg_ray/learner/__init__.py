"""The learner: GRPO updates of the policy by DeepSpeed."""
