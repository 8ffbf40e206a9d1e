"""A run's folder: opened, kept, taken back, gone on with."""
