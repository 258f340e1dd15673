"""D3PM's losses against exact enumeration: vocabulary 3, length 2, every x0, every x_t, every t."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion import d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.objectives import d3pm
from tests import chains
from tests.batch import batch_of
from tests.enumerable import all_sequences
from tests.objectives.enumeration import VOCAB, means, said
from tests.objectives.steps import (
    JOINT,
    LENGTH,
    STEPS,
    bound_by_matrices,
    cross_entropy,
    everything,
    leave_one_out,
    process_of,
    reverse_laws,
    states,
    wrong,
)


@functools.partial(jax.jit, static_argnums=0)
def losses_of(process, answers, x0, xt, t, ce_weight):
    """(the hybrid loss, the simple cross entropy) where the network has answered."""
    given = said(answers), {}, batch_of(x0), xt, t, process
    return d3pm.d3pm_at(*given, ce_weight), d3pm.d3pm_ce_at(*given)


def losses_everywhere(name, ce_weight):
    """The same for every x0, x_t and t, of the wrong denoiser."""
    every = everything(name)
    step, _, state = every.rows
    with jax.enable_x64(True):
        answers = np.log(wrong(name))[step, state]
        given = answers, *every.tokens, every.levels[step], ce_weight
        return jax.device_get(losses_of(process_of(name), *given))


def nll_of_chain(name, p):
    """-log p(x0) of the reverse Markov chain, states enumerated: float64[9]."""
    size, law = states(name), reverse_laws(name, p)
    xs = all_sequences(size, LENGTH)
    p_x = chains.prior(name, VOCAB)[xs].prod(1)
    for t in range(len(p), 0, -1):
        moves = np.nan_to_num(law[t - 1])[:, np.arange(LENGTH), xs].prod(-1)
        p_x = p_x @ moves
    np.testing.assert_allclose(p_x.sum(), 1, rtol=1e-9)
    return -np.log(p_x[(xs < VOCAB).all(1)])


@pytest.mark.parametrize("name", chains.NAMES)
def test_bound_is_that_of_explicit_matrices_and_above_the_nll_of_the_chain(name):
    """For a denoiser that is wrong everywhere; equal term by term, above for every sequence."""
    p = wrong(name)
    out, _ = losses_everywhere(name, 0.0)
    bound = everything(name).mean(out.bound)
    np.testing.assert_allclose(bound, bound_by_matrices(name, p), rtol=1e-8)
    np.testing.assert_array_equal(out.loss, out.bound)
    assert (bound > nll_of_chain(name, p) - 1e-9).all()
    assert (JOINT * (bound + np.log(JOINT))).sum() > 0.1


@pytest.mark.parametrize("name", chains.NAMES)
def test_bound_of_the_exact_denoiser_tends_to_the_nll_as_one_over_the_steps(name):
    gap = []
    for steps in (48, 96):
        with jax.enable_x64(True):
            process = process_of(name, steps)
        says = np.log(np.maximum(leave_one_out(name, steps), 1e-300))
        bound = means(d3pm.d3pm_at, process, everything(name, steps), says, "bound")
        gap.append((JOINT * (bound + np.log(JOINT))).sum())
    assert gap[0] > gap[1] > 0
    if name == "gaussian":  # beta changes with T, so that its steps shrink at another rate
        assert gap[1] < 0.1
    else:
        assert gap[1] < 0.03
        assert 1.8 < gap[0] / gap[1] < 2.2


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_absorbing_bound_weighs_the_masked_cross_entropy_by_one_over_t(ce_weight):
    """T (alpha_{t-1} - alpha_t) / (1 - alpha_t) = T / t, MDLM's weight in T steps."""
    every = everything("absorbing")
    (step, _, state), (x0, xt) = every.rows, every.tokens
    out, _ = losses_everywhere("absorbing", ce_weight)
    possible = ((xt == VOCAB) | (xt == x0)).all(1)
    p = wrong("absorbing")[step, state]
    ce = -np.log(np.take_along_axis(p, x0[..., None], -1)[..., 0])
    masked = np.where(xt == VOCAB, ce, 0).sum(1)
    bound = STEPS / (step + 1) * masked
    # over the tokens that have a loss
    mean = ce.mean(1) if ce_weight else masked / np.maximum((xt == VOCAB).sum(1), 1)
    for ours, want in (
        (out.bound, bound),
        (out.loss, bound + ce_weight * ce.sum(1)),
        (out.metrics["ce"], mean),
    ):
        np.testing.assert_allclose(ours[possible], want[possible], rtol=1e-12)


@pytest.mark.parametrize("name", ["absorbing", "nearest"])
def test_hybrid_adds_the_simple_cross_entropy(name):
    out, simple = losses_everywhere(name, 0.7)
    np.testing.assert_allclose(out.loss - out.bound, 0.7 * simple.loss, rtol=1e-12, atol=1e-12)
    assert simple.bound is None
    ce = everything(name).mean(simple.loss)
    np.testing.assert_allclose(ce, cross_entropy(name, wrong(name)), rtol=1e-12)


@pytest.mark.parametrize("name", chains.NAMES)
def test_gradient_is_the_slope_of_the_loss(name, float64):
    """Along random directions of log p, against central differences."""
    every = everything(name)
    step, _, state = every.rows
    keep = every.chance[every.rows] > 1e-300
    (x0, xt), t = every.tokens, every.levels[step]

    @jax.jit
    def loss_and_gradient(log_p):
        def loss(log_p):
            apply = said(log_p[step[keep], state[keep]])
            given = xt[keep], t[keep], process_of(name)
            return d3pm.d3pm_at(apply, {}, batch_of(x0[keep]), *given, ce_weight=0.3).loss.mean()

        return loss(log_p), jax.grad(loss)(log_p)

    rng, p = np.random.default_rng(0), wrong(name)
    log_p = np.log(p) + 0.1 * rng.normal(size=p.shape)
    _, gradient = loss_and_gradient(log_p)
    for _ in range(3):
        direction = rng.normal(size=p.shape)
        after, before = (loss_and_gradient(log_p + h * direction)[0] for h in (1e-5, -1e-5))
        slope = (after - before) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "gaussian", "nearest"])
def test_float32_agrees_with_float64_over_a_thousand_steps(name):
    """T times a KL of order 1/T, and its gradient, to 1e-4 at early, middle and late times."""
    vocab, steps, rows = 16, 1000, 6
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, vocab, (rows, 8))
    logits = 3 * rng.normal(size=(rows, 8, vocab))
    t = np.array([1, 2, 30, 400, 900, 1000]) / steps

    near = rng.normal(size=(vocab, 4))

    def make():
        return {
            "uniform": lambda: chains.make(name, steps, vocab),
            "gaussian": lambda: d3pm_gaussian.gaussian(0.97 ** np.arange(steps + 1), vocab),
            "nearest": lambda: d3pm_nearest.neighbour_process(1 - np.arange(1001) / 1000, near, 4),
        }[name]()

    keys = example_keys(step_key(0, 0), jnp.arange(rows))
    xt = jax.jit(make().corrupt)(keys, x0, np.float32(t))

    def results(dtype):
        process = make()

        def loss(answers):
            given = batch_of(x0), xt, jnp.asarray(t, dtype), process
            out = d3pm.d3pm_at(said(answers), {}, *given)
            return out.loss.sum(), out.loss

        return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(logits.astype(dtype)))

    slope, value = results(np.float32)
    with jax.enable_x64(True):
        slope64, value64 = results(np.float64)
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(value, value64, rtol=1e-4, atol=1e-4)
    for row, row64 in zip(slope, slope64, strict=True):
        np.testing.assert_allclose(row, row64, rtol=1e-3, atol=1e-4 * abs(row64).max() + 1e-7)
