"""Loading of prepared data: shuffled, sharded, resumable batches."""
