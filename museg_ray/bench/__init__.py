"""Benchmarks: ours against the naive or the published way, in one run on one machine."""
