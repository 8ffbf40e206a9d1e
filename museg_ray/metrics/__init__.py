"""Metric names and the recorder with its sinks: JSONL, TensorBoard, Ray."""
