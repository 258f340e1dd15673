"""Small networks with random weights, for properties that hold for any."""

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.network import Network


def random_params(network: Network, seed: int = 0, spread: float = 0.12) -> dict:
    """Random everywhere, zero-initialised heads and gates included; scales of norms are near 1."""
    random = np.random.default_rng(seed)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        near = float(path[-1].key == "scale")
        return jnp.asarray(near + spread * random.normal(size=shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(network.init, jax.random.key(0)))
