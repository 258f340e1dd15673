"""Discrete diffusion language models in JAX."""
