"""One training step: the same numbers for every split of a batch; non-finite ones do no harm."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import Config, ModelConfig, OptimConfig, TrainConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import LossOutput, Objective
from ddm_jax.parallel.layouts import dp
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state
from ddm_jax.training.step import MEANS, make_train_step

VOCAB, LENGTH, BATCH = 40, 16, 8
CONFIG = Config(
    model=ModelConfig(width=32, depth=2, heads=2, dropout=0.1),
    optim=OptimConfig(lr=1e-2, warmup_steps=2, weight_decay=0.1),
    train=TrainConfig(steps=60, batch_size=BATCH, log_every=4),
)


def with_train(**changes):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def make_step(config, objective):
    """The compiled step."""
    network = make_network(config.model, VOCAB)
    process = Absorbing(SCHEDULES["log_linear"].make(), mask_id=VOCAB)
    optimizer = make_optimizer(config.optim, config.train.steps)
    return jax.jit(make_train_step(config, network, objective, process, optimizer))


@functools.cache
def step_of(name="radd_t_dce", **changes):
    """The compiled step of an objective, with these fields of config.train."""
    return make_step(with_train(**changes), OBJECTIVES[name])


@functools.cache
def first_state(metrics=("masked",)):
    """A fresh state."""
    network = make_network(CONFIG.model, VOCAB)
    optimizer = make_optimizer(CONFIG.optim, CONFIG.train.steps)
    init = functools.partial(init_state, network, optimizer, metrics=(*MEANS, *metrics))
    return jax.jit(init)(jax.random.key(0))


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tokens = rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
        valid = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, (BATCH, 1))  # uneven on purpose
        yield {"tokens": tokens, "valid": valid}


def losses(step, count, layout=None):
    """The loss of each step from a fresh state."""
    seen, state, put = [], first_state(), lambda batch: batch
    if layout:
        state = jax.device_put(state, layout.state_shardings(state))
        put = layout.put_batch
    for batch in batches(count):
        state, metrics = step(state, put(batch))
        seen.append(float(metrics["loss"]))
    return np.array(seen)


def no_loss(params, noise):
    """A loss for objectives that only look at what they are given."""
    return 0 * noise.u + params["final_norm"]["scale"].sum()


@pytest.mark.slow
def test_micro_batches_and_devices_give_the_same_losses():
    """With a count of masks; tests/parallel/test_layouts.py has objectives that draw a time."""
    want = losses(step_of("radd_ao", log_every=1), 6)
    parts = losses(step_of("radd_ao", log_every=1, microbatches=4), 6)
    np.testing.assert_allclose(parts, want, rtol=1e-5)
    spread = losses(step_of("radd_ao", log_every=1), 6, dp(jax.devices()[:8]))
    np.testing.assert_allclose(spread, want, rtol=1e-5)
    assert len(set(want)) == 6


@pytest.mark.slow
def test_corruption_is_bitwise_the_same_under_every_layout():
    seen = []

    def spy(apply, params, batch, noise, process):
        xt = process.corrupt(noise.keys, batch["tokens"], noise.u, batch["valid"])
        row = batch["tokens"][:, 0]  # tells which example it is, whatever order it comes in
        jax.debug.callback(lambda *x: seen.append([np.asarray(a) for a in x]), row, xt, noise.u)
        return LossOutput(no_loss(params, noise), None)

    batch = next(batches(1))
    batch["tokens"][:, 0] = np.arange(BATCH)
    batch["valid"][:, 0] = True
    found = []
    for parts, devices in ((1, 1), (4, 1), (1, 8)):
        step, state = (
            make_step(with_train(microbatches=parts), Objective(spy, estimates=None)),
            first_state(()),
        )
        layout = dp(jax.devices()[:devices])
        state = jax.device_put(state, layout.state_shardings(state))
        jax.block_until_ready(step(state, layout.put_batch(batch)))
        jax.effects_barrier()
        first_token = np.concatenate([s[0] for s in seen])
        xt, u = (np.concatenate([s[i] for s in seen]) for i in (1, 2))
        found.append((xt[np.argsort(first_token)], u[np.argsort(first_token)]))
        assert sorted(first_token) == list(range(BATCH))
        seen.clear()
    for xt, u in found[1:]:
        np.testing.assert_array_equal(xt, found[0][0])
        np.testing.assert_array_equal(u, found[0][1])


@pytest.mark.slow
def test_logged_loss_is_the_mean_since_the_last_log():
    single = losses(step_of(log_every=1), 8)
    window = losses(step_of(log_every=4), 8)
    for start in (0, 4):
        means = np.cumsum(single[start : start + 4]) / np.arange(1, 5)
        np.testing.assert_allclose(window[start : start + 4], means, rtol=1e-5)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.slow
def test_non_finite_step_changes_counters_only(poison):
    def poisoned(apply, params, batch, noise, process):
        out = OBJECTIVES["radd_t_dce"].loss(apply, params, batch, noise, process)
        bad = batch["tokens"][0, 0] == VOCAB - 1
        # sqrt at 0 has a finite value and an infinite gradient
        loss = out.loss + (jnp.nan if poison == "loss" else jnp.sqrt(0 * out.loss.sum()))
        return dataclasses.replace(out, loss=jnp.where(bad, loss, out.loss))

    # the branch not taken would poison the gradient of good steps: they have a program of their own
    step = step_of(log_every=4)
    bad_step = make_step(with_train(log_every=4), Objective(poisoned, metrics=("masked",)))
    first, second, third = batches(3)
    second["tokens"][0, 0] = VOCAB - 1
    state, _ = step(first_state(), first)
    after, metrics = bad_step(state, second)
    for name in ("params", "ema", "opt_state", "updates", "window"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(after, name))
    assert int(after.step) == 2
    assert int(metrics["bad_in_a_row"]) == 1
    assert int(metrics["skipped"]) == 1
    assert np.isfinite(float(metrics["loss"]))
    last, metrics = step(after, third)
    assert int(metrics["bad_in_a_row"]) == 0
    assert int(metrics["skipped"]) == 1
    assert int(last.updates) == 2
    assert not np.array_equal(last.params["head"]["kernel"], state.params["head"]["kernel"])


def test_loss_is_per_valid_token():
    """A new network is uniform: its any-order loss is n log V for each sequence, log V a token."""
    _, metrics = step_of("radd_ao", log_every=1)(first_state(), next(batches(1)))
    np.testing.assert_allclose(metrics["loss"], np.log(VOCAB), rtol=1e-5)


def test_step_reduces_the_loss_on_one_batch():
    step, state, batch = step_of("radd_ao", log_every=1), first_state(), next(batches(1))
    seen = []
    for _ in range(CONFIG.train.steps):
        state, metrics = step(state, batch)
        seen.append(float(metrics["loss"]))
    assert np.mean(seen[-10:]) < 0.8 * seen[0]


@pytest.mark.slow
def test_times_follow_the_config():
    seen = []

    def spy(apply, params, batch, noise, process):
        jax.debug.callback(lambda u: seen.append(np.asarray(u)), noise.u)
        return LossOutput(no_loss(params, noise), None)

    for times in ("stratified", "antithetic"):
        step = make_step(with_train(times=times), Objective(spy, estimates=None))
        jax.block_until_ready(step(first_state(()), next(batches(1))))
        jax.effects_barrier()
    stratified, antithetic = seen
    np.testing.assert_allclose(np.diff(np.sort(stratified)), 1 / BATCH, atol=1e-6)
    np.testing.assert_allclose(antithetic.reshape(-1, 2).sum(1), 1, atol=1e-6)
