"""The driver: joins rollout, rewards and learner, and keeps the books."""
