"""The arithmetic of GRPO: advantages and loss, on plain arrays and tensors."""
