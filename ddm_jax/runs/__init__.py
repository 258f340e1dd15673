"""A run on disk: its record, checkpoints, metrics and progress."""
