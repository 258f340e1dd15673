"""Comparison of objectives, layouts and other settings, with a page of results."""
