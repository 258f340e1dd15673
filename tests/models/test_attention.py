"""Our attention on the CPU is jax's, in value and gradient, for every pattern that is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.models.attention import ATTENTION, auto_attention, jax_attention
from ddm_jax.models.attention_cpu import plain_attention, recompute

B, T, S, H, D = 2, 5, 7, 3, 4


def inputs(dtype="float32", queries=T):
    shapes = ((B, queries, H, D), (B, S, H, D), (B, S, H, D))
    random = np.random.default_rng(0)
    return tuple((3 * random.normal(size=shape)).astype(dtype) for shape in shapes)


def patterns():
    random = np.random.default_rng(1)
    shared, own = random.random((1, 1, T, S)) < 0.6, random.random((B, 1, T, S)) < 0.6
    some = np.arange(S) == 0  # every query sees something
    return {"all": None, "shared": shared | some, "own": own | some}


@functools.partial(jax.jit, static_argnames=("f", "causal"))
def value_and_gradient(f, args, mask, causal):
    return f(*args, mask, causal), jax.grad(lambda x: jnp.sin(f(*x, mask, causal)).sum())(args)


@pytest.mark.parametrize("pattern", ["all", "shared", "own", "causal"])
@pytest.mark.parametrize("ours", [plain_attention, recompute])
def test_our_attention_is_that_of_the_library(pattern, ours):
    causal = pattern == "causal"
    args = inputs(queries=S if causal else T)
    mask = None if causal else patterns()[pattern]
    close = functools.partial(np.testing.assert_allclose, atol=3e-5)
    jax.tree.map(close, *(value_and_gradient(f, args, mask, causal) for f in (ours, jax_attention)))


def test_frugal_attention_keeps_no_scores():
    q, k, v = inputs()
    kept = {}
    for f in (plain_attention, recompute):
        _, pull = jax.vjp(lambda *x, f=f: f(*x, None, False), q, k, v)
        kept[f] = max(x.size for x in jax.tree.leaves(pull))
    assert kept[plain_attention] >= B * H * T * S > kept[recompute] == k.size


def test_large_scores_and_bfloat16_do_no_harm():
    q, k, v = inputs(jnp.bfloat16)
    run = jax.jit(lambda *given: plain_attention(*given, None, False))
    exact = run(*(x.astype(np.float32) for x in (q, k, v)))
    assert run(q, k, v).dtype == jnp.bfloat16
    np.testing.assert_allclose(run(q, k, v), exact, atol=0.1)
    assert np.isfinite(np.asarray(run((1e3 * q).astype(q.dtype), k, v), np.float32)).all()


def test_float64_is_kept(float64):
    q, k, v = inputs("float64")
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    want = np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(plain_attention(q, k, v, None, False), want, rtol=1e-12)


def test_every_name_is_compiled_on_the_cpu_but_cudnn():
    q, k, v = inputs()
    want = jax_attention(q, k, v, None, False)
    for name in ("auto", "plain", "xla"):
        np.testing.assert_allclose(ATTENTION[name](q, k, v, None, False), want, atol=2e-6)
    text = (
        jax.jit(functools.partial(auto_attention, mask=None, causal=False)).lower(q, k, v).as_text()
    )
    alone = (
        jax.jit(functools.partial(plain_attention, mask=None, causal=False))
        .lower(q, k, v)
        .as_text()
    )
    assert text.count("dot_general") == alone.count("dot_general") == 2
