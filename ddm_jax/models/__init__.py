"""The networks as pure functions (network.py); only this package uses Flax NNX."""
