"""Evaluation of trained runs: likelihood of text, quality of samples, scores of translations."""
