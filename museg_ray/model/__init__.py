"""The policy: Qwen2.5-VL from a folder, its inputs from prepared clips, and log-probs of sampled completions."""
