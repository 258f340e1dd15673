"""Sources of text and pairs: files, embedded corpora and hubs."""
