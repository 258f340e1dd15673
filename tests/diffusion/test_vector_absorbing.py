"""Masking with a schedule for each token against its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.vector_absorbing import VectorAbsorbing, equal_powers, with_learned_powers

W = np.array([0.3, 1.0, 4.0])
BASE = Absorbing(SCHEDULES["linear"].make(), mask_id=3)
TIMES = np.array([1e-3, 0.1, 0.5, 0.999, 1 - 2.0**-24, 1.0])


def vector(w=W):
    return VectorAbsorbing(BASE, jnp.asarray(w))


def test_both_logarithms_are_those_of_alpha_in_float32():
    """alpha_v(t) = 1 - (1 - 1e-4) t^w, also where it is small."""
    x0 = np.broadcast_to(np.arange(3), (len(TIMES), 3))
    t = TIMES.astype(np.float32)
    m = (1 - 1e-4) * t.astype(np.float64)[:, None] ** W

    @jax.jit
    def both(x0, t):
        ours = VectorAbsorbing(BASE, jnp.float32(W))
        return ours.log_masked(x0, t), ours.log_clean(x0, t)

    masked, clean = both(x0, t)
    np.testing.assert_allclose(masked, np.log(m), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(np.exp(clean), 1 - m, rtol=2e-6)


@pytest.mark.parametrize("power", [0.05, 1.0, 20.0])
def test_equal_powers_come_back(power):
    w = jax.jit(lambda: with_learned_powers(BASE, equal_powers(BASE, power)).w)()
    np.testing.assert_allclose(w, np.full(3, power), rtol=1e-5)


def test_each_token_is_masked_by_its_own_schedule():
    """40,000 tokens of each kind; 5 standard errors (wrong once in 10^6). Prompts stay."""
    count, t = 40_000, 0.3
    x0 = np.broadcast_to([0, 1, 2, 2], (count, 4))
    movable = np.broadcast_to([True, True, True, False], x0.shape)

    @jax.jit
    def run(x0, movable):
        keys = example_keys(step_key(0, 0), jnp.arange(count))
        return vector().corrupt(keys, x0, jnp.full(count, t), movable)

    xt = np.asarray(run(x0, movable))
    p = (1 - 1e-4) * t**W
    masked = (xt == 3).mean(0)
    assert masked[3] == 0
    assert (abs(masked[:3] - p) < 5 * np.sqrt(p * (1 - p) / count)).all()
    assert ((xt == x0) | (xt == 3)).all()


@jax.jit
def reversed_once(xt, logits, s, t):
    keys = example_keys(step_key(0, 1), jnp.arange(len(xt)))
    return vector().reverse(keys, xt, logits, s, t)


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.7), (0.0, 0.01)])
def test_reverse_reveals_each_token_at_its_own_rate(s, t):
    """p_v (1 - (s/t)^w_v), the mask otherwise; 5 standard errors. What is not masked stays."""
    count = 40_000
    p = np.array([0.5, 0.3, 0.2])
    # as a network says it: not normalised
    logits = np.broadcast_to(np.float32(np.log(p) + 2), (count, 2, 3))
    xt = np.broadcast_to([3, 1], (count, 2))
    xs = np.asarray(reversed_once(xt, logits, np.float32(s), np.float32(t)))
    np.testing.assert_array_equal(xs[:, 1], 1)
    law = p * (1 - (s / t) ** W)
    law = np.append(law, 1 - law.sum())
    found = np.bincount(xs[:, 0], minlength=4) / count
    assert (abs(found - law) <= 5 * np.sqrt(law * (1 - law) / count) + 1e-12).all()
