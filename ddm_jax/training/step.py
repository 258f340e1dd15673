"""One training step: corrupt, differentiate, update; a pure function to be jitted under a layout.

All its randomness belongs to an example of the global batch, so that layouts and micro-batches
change no number beyond rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddm_jax.config import Config
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import TIMES, example_keys, step_key
from ddm_jax.errors import UserError
from ddm_jax.models.layout_hooks import LayoutHooks
from ddm_jax.models.network import Network, Params
from ddm_jax.models.readout import Readout
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, Objective
from ddm_jax.objectives.source import length_loss, with_source
from ddm_jax.parallel.layout_hooks import replica_hooks
from ddm_jax.parallel.layouts import Layout
from ddm_jax.training.optimizer import ema_update, learning_rate
from ddm_jax.training.state import TrainState

Metrics = dict[str, Array]
MEANS = ("loss", "grad_norm")
# dropout draws from a stream of its own, not from the one that corrupts
_DROPOUT = 1


class Examples(NamedTuple):
    """Examples of a batch and their randomness.

    Attributes:
      batch: arrays [b, ...].
      noise: of their corruptions.
      dropout_keys: key[b].
    """

    batch: Batch
    noise: Noise
    dropout_keys: Array


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

    A step whose loss or gradient is not finite changes the counters only.

    Args:
      config: settled.
      network: the network that is trained.
      objective: its loss.
      process: the forward process.
      optimizer: of `training.optimizer.make_optimizer`.
      layout: of the program that the step becomes; None on one device.

    Returns:
      step. Its batch is {"tokens": int32[B, L], "valid": bool[B, L], ...}, the whole global batch,
      or a device's own part of it if jax.pmap maps the step. Its metrics are float32[]: means over
      the steps since the last multiple of train.log_every (loss in nats per token, length_loss in
      nats per sequence), and `lr`, `bad_in_a_row`, `skipped` of this step.
    """
    axis = layout.pmap_axis if layout else None
    if layout is not None and layout.sums_per_replica(config.train.microbatches):
        network = _with_hooks(network, replica_hooks(layout))
    names = metric_names(network, objective)
    rate = learning_rate(config.optim, config.train.steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        examples, size = _draw_noise(config, state.step, batch, axis)
        loss = functools.partial(
            _loss,
            network=network,
            objective=objective,
            process=process,
            length_weight=config.objective.length_weight,
            tokens=jnp.maximum(_sum_over_axis(batch["valid"].sum(), axis), 1),
            size=size,
        )
        grads, metrics = _gradients(loss, state.params, examples, config, layout)
        metrics["grad_norm"] = optax.tree.norm(grads)
        state = _update(state, grads, metrics, config, optimizer)
        means = {name: state.window[name] / state.window["good_steps"] for name in names}
        return state, {
            **means,
            "lr": rate(state.updates - 1),
            "skipped": state.step - state.updates,
            "bad_in_a_row": state.bad_in_a_row,
        }

    return step


def _draw_noise(
    config: Config, step: Array, batch: Batch, axis: str | None
) -> tuple[Examples, int]:
    """The randomness of a device's part of a batch, and the size of the global batch."""
    own = len(batch["tokens"])
    size = own * (jax.lax.axis_size(axis) if axis else 1)
    index = jnp.arange(own) + (jax.lax.axis_index(axis) * own if axis else 0)
    key = step_key(config.seed, step)
    noise = Noise(TIMES[config.train.times](key, index, size), example_keys(key, index))
    dropout_keys = jax.vmap(jax.random.fold_in, (0, None))(noise.keys, _DROPOUT)
    return Examples(batch, noise, dropout_keys), size


def _check_output(out: LossOutput, objective: Objective) -> None:
    """Raises UserError if a loss, of a plug-in perhaps, is not what its row says."""
    if out.metrics.keys() != set(objective.metrics):
        raise UserError(
            f"The objective returns the metrics ({', '.join(out.metrics)}), and its row of "
            f"OBJECTIVES names ({', '.join(objective.metrics)}): make them equal."
        )
    if out.bound is None and objective.estimates:
        raise UserError(
            "The objective returns no bound, and its row of OBJECTIVES says that it estimates "
            f"{objective.estimates}: set estimates=None there, and name an estimator."
        )


def _loss(
    params: Params,
    examples: Examples,
    *,
    network: Network,
    objective: Objective,
    process: Process,
    length_weight: float,
    tokens: Array,
    size: int,
) -> tuple[Array, Metrics]:
    """The share of these examples in what is minimised, and in the means of a step.

    tokens, size: of the global batch, so that the shares of all examples add up to its means.
    """
    apply, memory = with_source(network, params, examples.batch, examples.dropout_keys)
    out = objective.loss(apply, params, examples.batch, examples.noise, process)
    _check_output(out, objective)
    shares = {"loss": out.loss.sum() / tokens}
    shares |= {name: x.sum() / size for name, x in out.metrics.items()}
    if memory is None:
        return shares["loss"], shares
    shares["length_loss"] = length_loss(memory, examples.batch).sum() / size
    return shares["loss"] + length_weight * shares["length_loss"], shares


def _gradients(
    loss: Callable[[Params, Examples], tuple[Array, Metrics]],
    params: Params,
    examples: Examples,
    config: Config,
    layout: Layout | None,
) -> tuple[Params, Metrics]:
    """Gradients and metrics, summed over micro-batches and devices."""
    microbatches, dtype = config.train.microbatches, config.model.gradient_dtype
    own = functools.partial(_over_microbatches, jax.grad(loss, has_aux=True), microbatches)
    if layout is None:
        return own(params, examples)
    if layout.sums_per_replica(microbatches):
        return layout.sum_per_replica(own, dtype)(params, examples)
    grads, metrics = own(params, examples)
    return layout.sum_gradients(grads, dtype), _sum_over_axis(metrics, layout.pmap_axis)


def _over_microbatches(
    grad: Callable[[Params, Examples], tuple[Params, Metrics]],
    microbatches: int,
    params: Params,
    examples: Examples,
) -> tuple[Params, Metrics]:
    """The sum of grad(params, part) over the micro-batches, one after the other."""
    if microbatches == 1:
        return grad(params, examples)

    def add(total: tuple[Params, Metrics], part: Examples) -> tuple[tuple[Params, Metrics], None]:
        return jax.tree.map(jnp.add, total, grad(params, part)), None

    # strided, so that every device keeps rows of each part
    split = jax.tree.map(
        lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), examples
    )
    shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, split)[0]


def _update(
    state: TrainState,
    grads: Params,
    metrics: Metrics,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state after a step; if the loss or a gradient is not finite, only counters change."""
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    change, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, change)
    updates = state.updates + 1
    ema = ema_update(state.ema, params, updates, config.optim.ema_decay)
    new = (params, ema, opt_state, updates)
    old = (state.params, state.ema, state.opt_state, state.updates)
    params, ema, opt_state, updates = jax.tree.map(functools.partial(jnp.where, good), new, old)
    window = _add_to_window(state, metrics, good, config.train.log_every)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        updates=updates,
        bad_in_a_row=jnp.where(good, 0, state.bad_in_a_row + 1),
        params=params,
        ema=ema,
        opt_state=opt_state,
        window=window,
    )


def _add_to_window(state: TrainState, metrics: Metrics, good: Array, log_every: int) -> Metrics:
    """Sums of metrics over the good steps since the last log, this step included."""
    fresh = state.step % log_every == 0
    seen = {**metrics, "good_steps": jnp.ones(())}
    return {
        name: jnp.where(fresh, 0, state.window[name]) + jnp.where(good, seen[name], 0)
        for name in state.window
    }


def _sum_over_axis(x: Any, axis: str | None) -> Any:
    """Sums a tree over the devices that jax.pmap maps the step to."""
    return jax.lax.psum(x, axis) if axis else x


def _with_hooks(network: Network, hooks: LayoutHooks) -> Network:
    """The network, whose readouts have other layout hooks."""

    def apply(*args: Any, **kwargs: Any) -> Readout:
        return dataclasses.replace(network.apply(*args, **kwargs), hooks=hooks)

    return dataclasses.replace(network, apply=apply)
