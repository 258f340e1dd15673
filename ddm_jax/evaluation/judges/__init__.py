"""Judges: pretrained models that score generated text."""
