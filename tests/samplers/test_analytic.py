"""SEDD's analytic sampler in float32; the law of its samples is in test_laws.py."""

import jax.numpy as jnp
import numpy as np

from ddm_jax.samplers.analytic import tweedie


def test_small_scores_beside_large_ones_are_not_lost_in_float32():
    """Late, when another token is all but certain: mean(s) is far above what is left of s_y."""
    score, redrawn = np.array([[1e6, 1e-3, 1.0]]), 1e-9
    want = (score - redrawn * score.mean()) * np.array([[redrawn, redrawn, 3 - 2 * redrawn]]) / 3
    ours = tweedie(jnp.log(jnp.float32(score)), jnp.array([2]), 1 - redrawn, redrawn)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, want, rtol=1e-5)
