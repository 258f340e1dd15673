"""Properties of the network that hold for any weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from ddm_jax.config import ModelConfig
from ddm_jax.models import readout as readout_module
from ddm_jax.models.layers import dropout
from ddm_jax.models.network import make_network, with_parameters
from tests.models.small import random_params

SMALL = {"width": 32, "depth": 3, "heads": 4}
VOCAB = 50


def tokens(batch=2, length=12, seed=3):
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length), np.int32)


@functools.cache
def given(time="none"):
    """A network, its weights, and its compiled `apply`, of which a few arguments are static."""
    network = make_network(ModelConfig(**SMALL, time=time), VOCAB)
    static = ("how", "keep")

    def apply(params, x, sigma=None, how=None, **rest):
        return network.apply(params, x, sigma, **rest if how is None else rest | {"attend": how})

    return network, random_params(network), jax.jit(apply, static_argnames=static)


SIGMA = np.linspace(0.1, 2, 2, dtype=np.float32)  # of the examples of tokens()


@pytest.mark.parametrize("causal", [True, False])
def test_causal_network_sees_no_later_token(causal):
    _, params, apply = given()
    x, how = tokens(), "causal" if causal else None
    changed = np.where(np.arange(x.shape[1]) == 7, (x + 1) % VOCAB, x)
    one, other = (np.asarray(apply(params, each, how=how).hidden) for each in (x, changed))
    difference = np.abs(one - other)
    before, after = difference[:, :7].max(), difference[:, 7:].min(axis=(0, 2)).max()
    assert (before == 0) == causal
    assert after > 0


def test_attention_pattern_and_positions_come_with_the_call():
    """A causal array is "causal"; tokens that carry their positions may come in any order."""
    _, params, apply = given()
    x = tokens()
    length = x.shape[1]
    causal = apply(params, x, how="causal").hidden
    lower = apply(params, x, attend=np.tri(length, dtype=bool)).hidden
    np.testing.assert_allclose(lower, causal, atol=1e-5)
    order = np.random.default_rng(0).permutation(length)
    shuffled = apply(params, x[:, order], positions=order).hidden
    in_order = np.asarray(apply(params, x).hidden)
    np.testing.assert_allclose(shuffled, in_order[:, order], atol=1e-5)


@pytest.mark.parametrize("time", ["none", pytest.param("adaln", marks=pytest.mark.slow)])
def test_tokens_one_by_one_over_a_cache_are_a_causal_pass(time):
    _, params, apply = given(time)
    x = tokens()
    length = x.shape[1]
    whole = jax.device_get(apply(params, x, SIGMA, how="causal", keep=True))
    cache = jax.tree.map(np.zeros_like, whole.cache)
    for start, number in ((0, 3), *((i, 1) for i in range(3, length))):
        at = start + np.arange(number)
        sees = np.arange(length) <= at[:, None]
        one = apply(params, x[:, at], SIGMA, attend=sees, positions=at, cache=cache)
        cache = one.cache
        np.testing.assert_allclose(one.hidden, whole.hidden[:, at], atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), cache, whole.cache)
    assert apply(params, x, SIGMA).cache is None


@pytest.mark.slow
@pytest.mark.parametrize("time", ["none", "adaln"])
def test_reading_a_few_tokens_is_reading_all_and_taking_these(time):
    _, params, apply = given(time)
    x = tokens()
    length = x.shape[1]
    read = np.random.default_rng(0).integers(0, length + 1, (len(x), 3), np.int32)
    sees = (np.random.default_rng(1).random((length, length)) < 0.7) | np.eye(length, dtype=bool)
    cache = apply(params, x[::-1], SIGMA, keep=True).cache
    for rest in (
        {},
        {"attend": sees},
        {"attend": sees, "positions": np.arange(length), "cache": cache},
    ):
        few = apply(params, x, SIGMA, read=read, **rest)
        every = apply(params, x, SIGMA, **rest).at(np.minimum(read, length - 1))
        np.testing.assert_allclose(few.hidden, every.hidden, atol=1e-5)


def test_constant_time_is_adaln_at_sigma_zero():
    (_, params, adaln), (_, _, constant) = given("adaln"), given("constant")
    x, at_one = tokens(), np.ones(2, np.float32)
    at_zero = np.asarray(adaln(params, x, 0 * at_one).hidden)
    np.testing.assert_array_equal(constant(params, x, at_one).hidden, at_zero)
    assert not np.allclose(adaln(params, x, at_one).hidden, at_zero, atol=1e-3)


@pytest.mark.slow
def test_parameters_of_an_objective_are_kept_from_the_network():
    network, params, apply = given()
    more = with_parameters(network, "objective", lambda key: {"w": jax.random.normal(key, (3,))})
    new, same = jax.jit(lambda key: (more.init(key), network.init(key)))(jax.random.key(0))
    own = new.pop("objective")
    assert own["w"].shape == (3,)
    jax.tree.map(np.testing.assert_array_equal, new, same)
    hidden = jax.jit(more.apply)(params | {"objective": own}, tokens()).hidden
    np.testing.assert_array_equal(hidden, apply(params, tokens()).hidden)


def test_mask_and_padding_ids_have_no_probability():
    network, params, _ = given()
    bias = np.asarray(params["head"]["bias"])
    bias = np.where(np.arange(len(bias)) < VOCAB, bias, 1e4)
    params = params | {"head": params["head"] | {"bias": bias}}

    @jax.jit
    def run(params, x):
        out = network.apply(params, x)
        return out.logits(), out.target(x)[1]

    logits, lse = run(params, tokens())
    assert logits.shape[-1] == VOCAB
    np.testing.assert_allclose(lse, logsumexp(logits, -1), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_target_in_chunks_equals_full_logits(monkeypatch, tied):
    network = make_network(ModelConfig(**SMALL, tied_head=tied), VOCAB)
    params, x = random_params(network), tokens(3, 11)

    def loss(params):
        logit, lse = network.apply(params, x).target(x)
        return jnp.sum((lse - logit) * jnp.arange(11))

    def plain(params):
        log_p = jax.nn.log_softmax(network.apply(params, x).logits())
        return -jnp.sum(jnp.take_along_axis(log_p, x[..., None], -1)[..., 0] * jnp.arange(11))

    want, want_grad = jax.jit(jax.value_and_grad(plain))(params)
    for room in (2**28, 4 * 128 * 4):  # at once; four positions at a time, the last chunk padded
        monkeypatch.setattr(readout_module, "LOGIT_BYTES", room)
        got, got_grad = jax.jit(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got_grad, want_grad
        )


def test_new_network_is_uniform_over_the_vocabulary():
    network, x = given()[0], tokens()
    new = jax.jit(lambda key: network.apply(network.init(key), x).target(x))
    logit, lse = map(np.asarray, new(jax.random.key(0)))
    np.testing.assert_allclose(lse - logit, np.log(VOCAB), rtol=1e-6)


@pytest.mark.slow
def test_dropout_depends_on_the_example_and_not_on_its_batch():
    network = make_network(ModelConfig(**SMALL, dropout=0.3), VOCAB)
    params, x = random_params(network), tokens(4)
    keys = jax.random.split(jax.random.key(9), 4)
    apply = jax.jit(network.apply)
    whole = np.asarray(apply(params, x, dropout_keys=keys).hidden)
    part = apply(params, x[2:], dropout_keys=keys[2:]).hidden
    np.testing.assert_allclose(whole[2:], part, rtol=2e-5, atol=2e-5)
    assert not np.allclose(whole, apply(params, x).hidden, atol=1e-2)


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    rate, count = 0.02, 4 * 500 * 32
    run = jax.jit(lambda keys: dropout(jnp.ones((4, 500, 32)), keys, 0, rate))
    out = np.asarray(run(jax.random.split(jax.random.key(0), 4)))
    dropped = (out == 0).mean()
    assert abs(dropped - rate) < 4 * np.sqrt(rate * (1 - rate) / count)  # 4 sigma: 6e-5
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-4)


@functools.cache
def gradient_with(remat):
    network = make_network(ModelConfig(**SMALL, remat=remat), VOCAB)
    return jax.jit(jax.grad(lambda p: network.apply(p, tokens()).hidden.sum()))(given()[1])


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, *(gradient_with(policy) for policy in ("none", remat)))


@pytest.mark.parametrize(("time", "arrays"), [("none", 6), ("adaln", 8)])
def test_a_layer_keeps_what_its_backward_pass_cannot_soon_compute_again(time, arrays):
    """x before attention and MLP; queries, keys, values, what they mix; the MLP before GELU.

    And what the gates of adaLN multiply.
    """
    depth, width, heads, ratio = *(SMALL[k] for k in ("depth", "width", "heads")), 4
    config = ModelConfig(**SMALL, mlp_ratio=ratio, time=time, attention="frugal")
    network = make_network(config, VOCAB)
    params, x = random_params(network), tokens()
    sigma = jnp.linspace(0.1, 2, len(x))

    def kept(params):
        _, pull = jax.vjp(lambda p: network.apply(p, x, sigma).hidden, params)
        return jax.tree.leaves(pull)

    of_tokens = (depth, len(x))
    shapes = [leaf.shape for leaf in jax.eval_shape(kept, params)]
    sizes = [np.prod(s) for s in shapes if s[:2] == of_tokens and x.shape[1] in s]
    normaliser = heads
    assert sum(sizes) / depth / x.size == (arrays + ratio) * width + normaliser


def test_program_does_not_grow_with_depth():
    def size(depth):
        network = make_network(ModelConfig(width=32, depth=depth, heads=4), VOCAB)
        params = jax.eval_shape(network.init, jax.random.key(0))
        return len(jax.jit(network.apply).lower(params, tokens()).as_text())

    assert size(24) < 1.05 * size(2)


def test_bfloat16_computes_in_bfloat16_and_reads_in_float32():
    network = make_network(ModelConfig(**SMALL, compute_dtype="bfloat16"), VOCAB)

    def run(params):
        low, exact = (each.apply(params, tokens()) for each in (network, given()[0]))
        return low.hidden, low.logits(), exact.logits()

    hidden, logits, exact = jax.jit(run)(given()[1])
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    np.testing.assert_allclose(logits, exact, atol=0.1)
