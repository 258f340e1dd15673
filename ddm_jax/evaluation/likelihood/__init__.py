"""Likelihood of text under a run: estimators, corpora, protocols and reports."""
