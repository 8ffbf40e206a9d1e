"""The synthetic corpus: what the demo runs on."""
