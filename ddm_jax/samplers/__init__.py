"""Samplers, one family a file, one signature."""
