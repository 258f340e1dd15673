"""Ahead-of-time compilation: whether a run fits a machine, and how fast it would be there."""
