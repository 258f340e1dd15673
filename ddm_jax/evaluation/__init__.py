"""Likelihood bounds and sample quality."""
