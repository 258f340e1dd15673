"""Splash attention: its numbers on the CPU, and where programs for TPUs have it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import LayoutConfig
from ddm_jax.models import splash as module
from ddm_jax.models.attention import attention
from ddm_jax.models.attention_cpu import plain_attention
from ddm_jax.models.layout_hooks import SINGLE_DEVICE
from ddm_jax.models.splash import fits, splash
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import make_layout


@pytest.fixture
def small_blocks(monkeypatch):
    """So that a short sequence has several."""
    monkeypatch.setattr(module, "BLOCK", 128)
    module._blocks.cache_clear()
    yield
    module._blocks.cache_clear()


@pytest.mark.parametrize("causal", [False, True])
def test_splash_and_its_gradients_agree_with_plain_attention(causal, small_blocks):
    del small_blocks
    *qkv, g = (jax.random.normal(jax.random.key(i), (1, 256, 1, 64)) for i in range(4))

    def both(function):
        return jax.jit(lambda *x: (lambda y, back: (y, *back(g)))(*jax.vjp(function, *x)))(*qkv)

    ours = both(functools.partial(splash, causal=causal, interpret=True))
    truth = both(functools.partial(plain_attention, mask=None, causal=causal))
    for a, b in zip(ours, truth, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_blocks_divide_a_length_and_are_as_large_as_they_may():
    assert [module._block(n) for n in (128, 512, 640, 768, 1024, 1152)] == [
        128, 512, 128, 384, 512, 384,
    ]  # fmt: skip
    assert fits(256, 128)
    assert not fits(200, 256)
    assert not fits(256, 200)


def kernels(attend, queries=256, keys=256, hooks=SINGLE_DEVICE):
    """How many kernels a program for TPUs has, forward and backward."""
    shapes = [(8, queries, 2, 64), (8, keys, 2, 64), (8, keys, 2, 64)]
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]

    def loss(*qkv):
        return attention("splash", *qkv, attend, hooks).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*args)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")


def test_programs_for_tpus_have_the_kernels():
    assert kernels(None) == 2
    assert kernels("causal") == 2
    assert kernels(None, queries=128) == 2  # of a target over a source


def test_masks_and_odd_lengths_are_left_to_the_library():
    assert kernels(jnp.tri(256, dtype=bool)) == 0
    assert kernels(None, queries=200) == 0
    assert kernels(None, keys=200) == 0


@pytest.mark.parametrize(("name", "attend", "number"), [
    ("dp", "causal", 2), ("fsdp_tp", None, 2), ("sp", None, 2), ("sp", "causal", 0),
])  # fmt: skip
def test_layouts_split_the_kernel(name, attend, number):
    # a device of "sp" has positions of its own, whose numbers the kernel does not know
    layout = make_layout(LayoutConfig(name), jax.devices()[:4])
    assert kernels(attend, hooks=hooks_of(layout)) == number


@pytest.mark.parametrize("attend", [None, "causal"])
def test_elsewhere_it_is_what_auto_is(attend):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 128, 2, 16)) for i in range(3))
    ours = attention("splash", q, k, v, attend)
    np.testing.assert_array_equal(ours, attention("auto", q, k, v, attend))
