"""A bound on the likelihood of held-out text, by Monte Carlo, with its standard error."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.diffusion.randomness import example_keys, step_key, stratify, uniforms
from ddm_jax.models.network import Network
from ddm_jax.objectives import Batch, Loss, Noise
from ddm_jax.objectives.source import with_source


@dataclass(frozen=True)
class Bound:
    """An upper bound on -log p: `nll` in nats per token, `stderr` its standard error.

    The standard error is over sequences: it holds the Monte-Carlo noise and the choice of text.
    `estimates` says what the number is where it is no bound (Objective.estimates).
    """

    nll: float
    stderr: float
    ppl: float
    bits_per_byte: float
    tokens: int
    sequences: int
    draws: int
    estimates: str

    def metrics(self) -> dict[str, float]:
        """What a line of metrics.jsonl says of it."""
        return {name: getattr(self, name) for name in ("nll", "stderr", "ppl", "bits_per_byte")}


def make_bound(
    network: Network, loss: Loss, process: Any, draws: int
) -> Callable[[Any, Batch, Array], tuple[Array, Array]]:
    """Builds bound(params, batch, index) -> (nats[b], tokens[b]) for `estimate`; to be jitted.

    index: int32[b], the number of each sequence in the held-out text: it alone decides the
    corruptions, `draws` of them with noise levels stratified within the sequence.
    """

    def bound(params: Any, batch: Batch, index: Array) -> tuple[Array, Array]:
        keys = example_keys(step_key(0, 0), index)
        u = uniforms(keys)
        apply, _ = with_source(network, params, batch)

        def draw(total: Array, d: Array) -> tuple[Array, None]:
            draw_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, d)
            noise = Noise(stratify(u, d, draws), draw_keys)
            return total + loss(apply, params, batch, noise, process).bound, None

        total, _ = jax.lax.scan(draw, jnp.zeros(len(index)), jnp.arange(draws))
        return total / draws, batch["valid"].sum(axis=1)

    return bound


def estimate(
    bound: Callable[[Any, Batch, Array], tuple[Array, Array]],
    params: Any,
    batches: Iterable[Batch],
    draws: int,
    bytes_per_token: float,
    estimates: str,
) -> Bound:
    """Runs a `make_bound` function over held-out batches; rows without a valid token are skipped.

    Returns nats per token, sum of nats over sum of tokens, with the standard error of that ratio.
    """
    nats, tokens, first = [], [], 0
    for batch in batches:
        rows = batch["tokens"].shape[0]
        n, t = bound(params, batch, jnp.arange(first, first + rows))
        nats.append(n)
        tokens.append(t)
        first += rows
    nats, tokens = np.concatenate(nats).astype(np.float64), np.concatenate(tokens)
    nats, tokens = nats[tokens > 0], tokens[tokens > 0]
    nll = nats.sum() / tokens.sum()
    residual = nats - nll * tokens
    stderr = math.sqrt((residual**2).sum() / (len(nats) - 1) / len(nats)) / tokens.mean()
    return Bound(
        nll=float(nll),
        stderr=float(stderr),
        ppl=math.exp(nll),
        bits_per_byte=float(nll / math.log(2) / bytes_per_token),
        tokens=int(tokens.sum()),
        sequences=len(nats),
        draws=draws,
        estimates=estimates,
    )
