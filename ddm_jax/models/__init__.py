"""The transformer and its functional boundary; Flax NNX stays inside this folder."""
