"""MDLM's trajectories, step by step from its recorded uniforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.categorical import race
from ddm_jax.diffusion.schedules import SCHEDULES
from tests.models.published import published_dit


@functools.cache
def trajectory(oracle):
    """(arrays, p(x0 | tokens), vocabulary); the published network was not told the time."""
    weights, _ = oracle("mdlm", "dit_weights")
    arrays, meta = oracle("mdlm", "sampler_traj")
    vocab = arrays["ddpm_u"].shape[-1] - 1
    assert not meta["config"]["time_conditioning"]
    apply, params = published_dit(weights, meta["config"]["model"], vocab, "float32")

    @jax.jit
    def law(tokens):
        return jax.nn.softmax(apply(params, tokens, jnp.zeros(len(tokens))).logits())

    return arrays, law, vocab


# the second rule takes t for 1 - alpha(t), without the eps of the schedule
@pytest.mark.parametrize(("rule", "eps"), [("ddpm", 1e-3), ("ddpm_cache", 0.0)])
def test_trajectories_equal_oracle(oracle, rule, eps):
    arrays, law, vocab = trajectory(oracle)
    process = Absorbing(SCHEDULES["log_linear"].make(eps=eps), vocab)
    states = [*arrays[f"{rule}_x_before"], arrays[f"{rule}_x_last"]]
    steps = len(states) - 1
    times = np.linspace(1, 1e-5, steps + 1)
    moved = 0
    for i in range(steps):
        x, (t, s) = states[i], times[i : i + 2]
        reveal, stay = process.reveal(s, t), process.stay_masked(s, t)
        weights = jnp.append(reveal * law(x), jnp.full((*x.shape, 1), stay), axis=-1)
        # the published race is argmax p / -log u, ours argmin -log(1 - u) / p
        drawn = race(1 - arrays[f"{rule}_u"][i], jnp.log(weights))
        ours = np.where(x == vocab, drawn, x)
        np.testing.assert_array_equal(ours, states[i + 1])
        moved += (ours != x).sum()
    assert moved
    last = states[-1]
    ours = np.where(last == vocab, law(last).argmax(-1), last)
    np.testing.assert_array_equal(ours, arrays[f"{rule}_x_final"])
