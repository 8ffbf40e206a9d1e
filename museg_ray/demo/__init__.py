"""The synthetic corpus and museg-tiny: what the demo runs on."""
