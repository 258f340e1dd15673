"""Preparation of data: from sources to token records on disk."""
