"""Noise schedules, forward processes and exact sampling: pure jnp, no networks."""
