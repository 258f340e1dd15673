"""One training step: corrupt, differentiate, update; a pure function to be jitted under a layout.

Everything random in it belongs to an example of the global batch, so that layouts and micro-batches
change no number beyond rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddm_jax.config import Config
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import TIMES, example_keys, step_key
from ddm_jax.models.layout_hooks import LayoutHooks
from ddm_jax.models.network import Network
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import Batch
from ddm_jax.objectives.signature import Noise, Objective
from ddm_jax.objectives.source import length_loss, with_source
from ddm_jax.parallel.layout_hooks import replica_hooks
from ddm_jax.parallel.layouts import Layout
from ddm_jax.training.optimizer import ema_update, learning_rate
from ddm_jax.training.state import TrainState

Metrics = dict[str, Array]
MEANS = ("loss", "grad_norm")
# dropout draws from a stream of its own, not from the one that corrupts
_DROPOUT = 1


def metric_names(network: Network, objective: Objective) -> tuple[str, ...]:
    """The means that a train step logs."""
    lengths = () if network.encode is None else ("length_loss",)
    return (*MEANS, *objective.metrics, *lengths)


def make_train_step(
    config: Config,
    network: Network,
    objective: Objective,
    process: Process,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds step(state, batch) -> (state, metrics).

    batch: {"tokens": int32[B, L], "valid": bool[B, L], ...}, the whole global batch; a device's own
    part of it where jax.pmap maps the step. layout: that of the program which the step becomes,
    None on one device. metrics:
    float32[] means over the steps since the last multiple of train.log_every (loss in nats per
    token, length_loss in nats per sequence), and `lr`, `bad_in_a_row`, `skipped` of this step. A
    step whose loss or gradient is not finite changes the counters only.
    """
    parts = config.train.microbatches
    names = metric_names(network, objective)
    rate = learning_rate(config.optim, config.train.steps)
    times = TIMES[config.train.times]

    axis, dtype = layout.axis if layout else None, config.model.gradient_dtype

    def total(x: Any) -> Any:
        """Sums over the devices that the step is mapped to."""
        return jax.lax.psum(x, axis) if axis else x

    apart = layout is not None and layout.sums_per_replica(parts)
    if apart:
        network = _reading(network, replica_hooks(layout))

    def gradients(
        params: Any, examples: tuple[Batch, Noise, Array], tokens: Array, size: int
    ) -> tuple[Any, Metrics]:
        """Of these examples, sums over those of all: tokens, size are the global batch's."""

        def part_loss(params: Any, part: tuple[Batch, Noise, Array]) -> tuple[Array, Metrics]:
            part_batch, part_noise, dropout_keys = part
            apply, memory = with_source(network, params, part_batch, dropout_keys)
            out = objective.loss(apply, params, part_batch, part_noise, process)
            sums = {"loss": out.loss.sum() / tokens}
            sums |= {name: x.sum() / size for name, x in out.metrics.items()}
            if memory is None:
                return sums["loss"], sums
            sums["length_loss"] = length_loss(memory, part_batch).sum() / size
            return sums["loss"] + config.objective.length_weight * sums["length_loss"], sums

        grad = jax.grad(part_loss, has_aux=True)
        if parts == 1:
            return grad(params, examples)

        def add(total: tuple[Any, Metrics], part: Any) -> tuple[tuple[Any, Metrics], None]:
            return jax.tree.map(jnp.add, total, grad(params, part)), None

        # strided, so that every device keeps rows of each part
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), examples)
        shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], split))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, split)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own = len(batch["tokens"])
        size = own * (jax.lax.axis_size(axis) if axis else 1)
        index = jnp.arange(own) + (jax.lax.axis_index(axis) * own if axis else 0)
        key = step_key(config.seed, state.step)
        noise = Noise(times(key, index, size), example_keys(key, index))
        dropout = jax.vmap(jax.random.fold_in, (0, None))(noise.keys, _DROPOUT)
        tokens = jnp.maximum(total(batch["valid"].sum()), 1)
        examples = (batch, noise, dropout)
        summed = functools.partial(gradients, tokens=tokens, size=size)
        if apart:
            grads, metrics = layout.sum_per_replica(summed, dtype)(state.params, examples)
        else:
            grads, metrics = summed(state.params, examples)
            if layout:
                grads, metrics = layout.sum_gradients(grads, dtype), total(metrics)
        metrics["grad_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

        change, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        updates = state.updates + 1
        ema = ema_update(state.ema, params, updates, config.optim.ema_decay)
        new = (params, ema, opt_state, updates)
        old = (state.params, state.ema, state.opt_state, state.updates)
        params, ema, opt_state, updates = jax.tree.map(functools.partial(jnp.where, good), new, old)
        fresh = state.step % config.train.log_every == 0
        seen = {**metrics, "good_steps": jnp.ones(())}
        window = {
            name: jnp.where(fresh, 0, state.window[name]) + jnp.where(good, seen[name], 0)
            for name in state.window
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            updates=updates,
            bad_in_a_row=jnp.where(good, 0, state.bad_in_a_row + 1),
            params=params,
            ema=ema,
            opt_state=opt_state,
            window=window,
        )
        means = {name: window[name] / window["good_steps"] for name in names}
        return state, {
            **means,
            "lr": rate(updates - 1),
            "skipped": state.step - state.updates,
            "bad_in_a_row": state.bad_in_a_row,
        }

    return step


def _reading(network: Network, hooks: LayoutHooks) -> Network:
    """The network, whose heads are read as on devices that are spread like this."""

    def apply(*args: Any, **kwargs: Any) -> Readout:
        return dataclasses.replace(network.apply(*args, **kwargs), hooks=hooks)

    return dataclasses.replace(network, apply=apply)
