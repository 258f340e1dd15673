"""A bound on the likelihood of held-out text, by Monte Carlo, with its standard error."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import example_keys, step_key, stratify, uniforms
from ddm_jax.models.network import Network
from ddm_jax.objectives import Batch
from ddm_jax.objectives.signature import Loss, Noise
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
    network: Network, loss: Loss, process: Process, draws: int
) -> Callable[[Any, Batch, Array], tuple[Array, Array]]:
    """Builds bound(params, batch, index) -> (nats[b], tokens[b]) for `estimate`; to be jitted.

    index: int32[b], the number of each sequence in the held-out text: it alone decides the
    corruptions, `draws` of them with noise levels stratified within the sequence.
    """
    grouped = make_groups(network, loss, process, draws, groups=1)

    def bound(params: Any, batch: Batch, index: Array) -> tuple[Array, Array]:
        nats, tokens = grouped(params, batch, index, 0)
        return nats[:, 0], tokens

    return bound


def make_groups(
    network: Network, loss: Loss, process: Process, draws: int, groups: int, stratified: bool = True
) -> Callable[[Any, Batch, Array, int], tuple[Array, Array]]:
    """Builds grouped(params, batch, index, seed) -> (nats float32[b, groups], tokens int32[b]).

    Every sequence is corrupted `draws` times, in `groups` independent groups of equal size; nats
    are the mean of the loss in each, and two groups tell the error of the draws. Noise levels are
    stratified within a group, or independent.

    index: int32[b], the number of each sequence in the text; with the seed (a number, traced or
    not) it alone decides the corruptions, so that no batch size or device changes them.
    """
    each = draws // groups

    def grouped(params: Any, batch: Batch, index: Array, seed: int) -> tuple[Array, Array]:
        keys = example_keys(step_key(seed, 0), index)
        u = uniforms(keys, (groups if stratified else draws,))
        apply, _ = with_source(network, params, batch)

        def draw(total: Array, d: Array) -> tuple[Array, None]:
            group = d // each
            draw_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, d)
            level = stratify(u[:, group], d % each, each) if stratified else u[:, d]
            nats = loss(apply, params, batch, Noise(level, draw_keys), process).bound
            return total.at[:, group].add(nats / each), None

        total, _ = jax.lax.scan(draw, jnp.zeros((len(index), groups)), jnp.arange(draws))
        return total, batch["valid"].sum(axis=1)

    return grouped


@dataclass(frozen=True)
class Mean:
    """Nats per token, sum over sum, and its standard errors; nan where one cannot be told.

    stderr: over sequences, so that it holds the choice of text and the draws. mc_stderr: of the
    draws alone, for this very text. text_stderr: what is left of the first without the second.
    """

    nll: float
    stderr: float
    mc_stderr: float
    text_stderr: float


def mean(nats: np.ndarray, tokens: np.ndarray) -> Mean:
    """The ratio of sums, its error over sequences (linearised) and over independent groups.

    nats: float[N, groups], independent unbiased estimates of each sequence's bound, of which at
    least two tell mc_stderr. tokens: int[N], at least 1 each. stderr needs two sequences.
    """
    count, groups = nats.shape
    nats = nats.astype(np.float64)
    of_sequence = nats.mean(axis=1)
    nll = of_sequence.sum() / tokens.sum()
    stderr = mc_stderr = math.nan
    if count > 1:
        residual = of_sequence - nll * tokens
        stderr = math.sqrt((residual**2).sum() / (count - 1) / count) / tokens.mean()
    if groups > 1:
        mc_stderr = math.sqrt((nats.var(axis=1, ddof=1) / groups).sum()) / tokens.sum()
    text = math.sqrt(max(0.0, stderr**2 - mc_stderr**2)) if count > 1 and groups > 1 else math.nan
    return Mean(float(nll), float(stderr), float(mc_stderr), text)


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
    nats, tokens = np.concatenate(nats), np.concatenate(tokens)
    nats, tokens = nats[tokens > 0], tokens[tokens > 0]
    found = mean(nats[:, None], tokens)
    return Bound(
        nll=found.nll,
        stderr=found.stderr,
        ppl=math.exp(found.nll),
        bits_per_byte=found.nll / math.log(2) / bytes_per_token,
        tokens=int(tokens.sum()),
        sequences=len(nats),
        draws=draws,
        estimates=estimates,
    )
