"""Losses of the fused head equal those of all logits, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import LayoutConfig, ModelConfig
from ddm_jax.models import head as head_module
from ddm_jax.models.network import make_network
from ddm_jax.models.readout import Readout, take_logit
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import make_layout
from tests.models.small import random_params
from tests.programs import outputs

VOCAB, SIZE, LENGTH = 50, 8, 12
SHARES = {"uneven": None, "none": 0.0, "all": 1.0}
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(head_module, "ROWS", 8)


def given(share: float | None) -> tuple[np.ndarray, ...]:
    """Tokens of the input, targets, and weights that are 0 at all but this share of positions."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, VOCAB, (2, SIZE, LENGTH))
    each = np.linspace(0, 1, SIZE)[:, None] if share is None else share
    weight = np.where(rng.random((SIZE, LENGTH)) < each, rng.uniform(0.5, 3, (SIZE, 1)), 0)
    return tokens, targets, weight.astype(np.float32)


def plainly(readout: Readout, targets: np.ndarray, weight: np.ndarray) -> jax.Array:
    log_p = jax.nn.log_softmax(readout.logits())
    return jnp.where(weight == 0, 0, -weight * take_logit(log_p, targets))


@functools.cache
def made(layout: str = "", **options):
    """(network, parameters), on the eight devices of a layout or on one."""
    sizes = {"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2, "time": "none"}
    config = ModelConfig(**sizes, **options)
    if not layout:
        network = make_network(config, VOCAB)
        return network, random_params(network)
    network = make_network(config, VOCAB, hooks_of(laid_out(layout)))
    params = random_params(network)
    if not laid_out(layout).entry.uses_pmap:
        params = jax.device_put(params, laid_out(layout).param_shardings(params))
    return network, params


def laid_out(layout: str):
    axes = "model=2" if layout == "tp" else ""  # as many as there are heads
    return make_layout(LayoutConfig(layout, axes), jax.devices()[:8])


@functools.cache
def program(losses, network):
    def value(params, tokens, targets, weight, linear, square):
        found = losses(network.apply(params, tokens), targets, weight)
        return (linear * found + square * found**2).mean(), found

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def answer(losses, network, params, share=None, linear=1.0, square=0.0):
    """((mean of linear * losses + square * losses^2, losses), gradient)."""
    factors = (np.broadcast_to(np.float32(x), (SIZE, 1)) for x in (linear, square))
    return program(losses, network)(params, *given(share), *factors)


def both(network, params, *rest):
    """The answers of the fused head, and of all logits."""
    return [answer(losses, network, params, *rest) for losses in (Readout.cross_entropy, plainly)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_losses_and_gradients_are_those_of_all_logits(share, tied):
    fused, plain = both(*made(tied_head=tied), SHARES[share])
    jax.tree.map(close, fused, plain)
    if share != "none":
        assert np.abs(fused[1]["head"]["bias"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pmap", "dp", "fsdp", "tp", "sp"])
def test_the_same_on_eight_devices(layout):
    network, params = made(layout)
    single_device = answer(plainly, *made(tied_head=False))
    if layout != "pmap":
        jax.tree.map(close, answer(Readout.cross_entropy, network, params), single_device)
        return
    tokens, targets, weight = given(None)

    @functools.partial(jax.pmap, axis_name="data", in_axes=(None, 0, 0, 0))
    def of_device(params, tokens, targets, weight):
        def mean(params):
            losses = network.apply(params, tokens).cross_entropy(targets, weight)
            return losses.sum() / (SIZE * LENGTH), losses

        (value, losses), grads = jax.value_and_grad(mean, has_aux=True)(params)
        return (jax.lax.psum(value, "data"), losses), jax.lax.psum(grads, "data")

    (value, losses), grads = of_device(params, *(x[:, None] for x in (tokens, targets, weight)))
    first = functools.partial(jax.tree.map, lambda x: x[0])
    jax.tree.map(close, ((value[0], losses[:, 0]), first(grads)), single_device)


@pytest.mark.slow
def test_gradients_of_losses_that_count_differently():
    """The gradients that were formed with the logits are of their sum; these are of another."""
    power = np.linspace(-1, 2, SIZE)[:, None]
    jax.tree.map(close, *both(*made(tied_head=False), None, power))
    jax.tree.map(close, *both(*made(tied_head=False), None, 0.0, 1.0))


@pytest.mark.slow
def test_losses_that_count_differently_on_some_devices_of_a_split_vocabulary():
    """All go the same way, with as many chunks: otherwise they would wait for ever."""
    last = np.arange(SIZE)[:, None] == SIZE - 1
    factors = SIZE / (SIZE - 1) * ~last, SIZE * last
    fused = answer(Readout.cross_entropy, *made("tp"), None, *factors)
    want = answer(plainly, *made(tied_head=False), None, *factors)
    jax.tree.map(functools.partial(close, atol=1e-5), fused, want)


def hidden_and_head():
    hidden = np.random.default_rng(2).normal(size=(SIZE, LENGTH, 32)).astype(np.float32)
    return hidden, made(tied_head=False)[1]["head"]


def test_nan_where_there_is_no_loss_does_not_spread():
    _, targets, weight = given(None)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(hidden, head):
        readout = Readout(hidden, head["kernel"], head["bias"], VOCAB)
        return readout.cross_entropy(targets, weight).mean()

    hidden, head = hidden_and_head()
    spoilt = np.where((weight == 0)[..., None], np.nan, hidden)
    jax.tree.map(close, gradient(spoilt, head), gradient(hidden, head))


def test_any_loss_of_the_logits():
    _, _, weight = given(None)
    shift = np.random.default_rng(1).normal(size=weight.shape).astype(np.float32)

    def entropy(logits, shift):
        return jnp.exp(jax.nn.logsumexp(logits, axis=-1) + shift) + logits[:, 0]

    def fused(readout):
        return readout.losses(entropy, weight, shift).sum()

    def plain(readout):
        logits = readout.logits().reshape(-1, VOCAB)
        return (weight.reshape(-1) * entropy(logits, shift.reshape(-1))).sum()

    def answer(loss):
        def value(hidden, head):
            return loss(Readout(hidden, head["kernel"], head["bias"], VOCAB))

        return jax.jit(jax.value_and_grad(value, (0, 1)))(*hidden_and_head())

    jax.tree.map(functools.partial(close, atol=1e-4), answer(fused), answer(plain))


@pytest.mark.slow
def test_bfloat16_accumulates_in_float32():
    _, exact = answer(plainly, *made(tied_head=False))
    _, grads = answer(Readout.cross_entropy, *made(compute_dtype="bfloat16"))
    assert grads["head"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(grads["head"]["kernel"], exact["head"]["kernel"], atol=2e-3)


def test_no_array_has_more_logits_than_a_chunk():
    network, params = made()
    tokens, targets, weight = given(None)
    rows = head_module.chunk_rows(SIZE * LENGTH, 128)
    assert rows == 8

    def mean(params):
        return network.apply(params, tokens).cross_entropy(targets, weight).mean()

    program = jax.make_jaxpr(jax.grad(mean))(params).jaxpr
    wide = {x.shape for _, x in outputs(program) if getattr(x, "shape", ())[-1:] in ((50,), (128,))}
    assert (rows, 128) in wide
    kernels = {shape for shape in wide if shape[-2:-1] == (32,)}
    assert max(np.prod(shape[:-1]) for shape in wide - kernels) == rows
