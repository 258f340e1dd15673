"""Text sources -> tokenizer -> packed token shards -> Grain loader."""
