"""Prepared data sets on disk: text and pairs, and their records."""
