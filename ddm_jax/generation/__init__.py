"""Generation of text from a trained run."""
