"""Small networks with random weights, for properties that hold for any."""

import jax

from ddm_jax.models.network import Network


def random_params(network: Network, seed: int = 0) -> dict:
    """Random everywhere, zero-initialised heads and gates included."""
    params = jax.jit(network.init)(jax.random.key(seed))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noise = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, noise)
