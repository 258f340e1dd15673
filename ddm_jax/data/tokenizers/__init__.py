"""Tokenizers: SentencePiece, GPT-2 BPE and characters."""
