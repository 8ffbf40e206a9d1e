"""The arithmetic of GRPO: advantages, token weights and loss, on plain arrays and tensors."""
