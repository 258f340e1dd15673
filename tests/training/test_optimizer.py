"""AdamW, clipping, warm-up and EMA follow the published PyTorch traces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddm_jax.config import OptimConfig
from ddm_jax.training.optimizer import ema_update, learning_rate, make_optimizer


@pytest.mark.parametrize("which", ["wd0.0", "wd0.1"])
@pytest.mark.slow
def test_updates_and_ema_equal_oracle(oracle, which):
    arrays, meta = oracle("radd", "ema_optim")
    optim = meta[f"optim_config_{which}"]["optim"]
    config = OptimConfig(
        lr=optim["lr"],
        warmup_steps=optim["warmup"],
        b1=optim["beta1"],
        b2=optim["beta2"],
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
        clip=optim["grad_clip"],
    )
    steps = len(arrays["g0"])
    optimizer = make_optimizer(config, steps)
    # both leaves are decayed there, so both get a name that we decay
    params = {str(i): {"kernel": jnp.asarray(arrays[f"p{i}_init"])} for i in range(2)}
    state = optimizer.init(params)
    decays = {"ema": 0.9999, "ema_d0.3_": 0.3}
    emas = {name: params for name in decays}
    for n in range(steps):
        grads = {str(i): {"kernel": jnp.asarray(arrays[f"g{i}"][n])} for i in range(2)}
        rate = learning_rate(config, steps)(n)
        np.testing.assert_allclose(rate, arrays[f"{which}_lr"][n], rtol=1e-6)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name, decay in decays.items():
            emas[name] = ema_update(emas[name], params, jnp.int32(n + 1), decay)
        for i in range(2):
            got = {"p": params} | emas
            for name, tree in got.items():
                want = arrays[f"{which}_{name}{i}"][n]
                np.testing.assert_allclose(tree[str(i)]["kernel"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_learning_rate_has_its_ends(decay):
    config = OptimConfig(lr=2.0, warmup_steps=10, decay=decay)
    rate = learning_rate(config, 110)
    np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.2, 1.0, 2.0], rtol=1e-6)
    middle, end = {"constant": (2, 2), "cosine": (1, 0), "linear": (1, 0)}[decay]
    np.testing.assert_allclose([rate(10), rate(60), rate(110)], [2, middle, end], atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_inverse_sqrt_equals_closed_form(warmup):
    """As Vaswani's min(k^-1/2, k w^-3/2), which is w^-1/2 at its peak, for the k-th update."""
    rate = learning_rate(OptimConfig(lr=2.0, warmup_steps=warmup, decay="inverse_sqrt"), 8)
    k, w = np.arange(1, 400), max(warmup, 1)  # beyond `steps`, which it does not depend on
    want = 2 * w**0.5 * np.minimum(k**-0.5, k * w**-1.5)
    np.testing.assert_allclose([rate(n) for n in k - 1], want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(rate)(jnp.int32(40)), want[40], rtol=1e-6)


def test_weight_decay_leaves_norms_and_biases_alone():
    params = {"norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)}, "qkv": {"kernel": jnp.ones(3)}}
    optimizer = make_optimizer(OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5), 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["qkv"]["kernel"], -0.05)
    assert not np.any(updates["norm"]["scale"])
    assert not np.any(updates["norm"]["bias"])


def test_clip_of_zero_is_none():
    params = {"kernel": jnp.ones(3)}
    grad = {"kernel": jnp.array([1e3, 2.0, -5.0])}
    found = []
    for clip in (0.0, 1e9):
        optimizer = make_optimizer(OptimConfig(clip=clip, warmup_steps=0), 10)
        found.append(optimizer.update(grad, optimizer.init(params), params)[0]["kernel"])
    np.testing.assert_array_equal(*found)
    assert (found[0] != 0).all()
