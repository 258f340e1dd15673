"""What a compiled program costs: memory, FLOPs, bytes and collectives, read from its HLO."""
