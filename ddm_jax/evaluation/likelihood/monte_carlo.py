"""Monte Carlo estimates of the likelihood of text, with their standard errors."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import example_keys, step_key, stratify, uniforms
from ddm_jax.evaluation.reports import perplexity
from ddm_jax.models.network import Network, Params
from ddm_jax.objectives import Batch
from ddm_jax.objectives.signature import Loss, Noise
from ddm_jax.objectives.source import with_source
from ddm_jax.wording import counted

# (params, batch, index int32[b]) -> (nats float32[b], tokens int32[b])
BoundFn = Callable[[Params, Batch, Array], tuple[Array, Array]]
# (params, batch, index int32[b], seed) -> (nats float32[b, groups], tokens int32[b])
GroupedFn = Callable[[Params, Batch, Array, int], tuple[Array, Array]]


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of held-out text under a network; str() says it in words.

    Attributes:
      nll: negative log-likelihood, or what `estimates` says, in `units`: the sum over all
        sequences over the sum of their tokens.
      stderr: standard error of nll over sequences: it holds the Monte Carlo noise and the choice
        of text. nan for a single sequence.
      ppl: perplexity, exp(nll).
      bits_per_byte: over the UTF-8 bytes of the text; None where the text has none.
      tokens: number of tokens, EOS included.
      sequences: number of sequences.
      draws: corruptions of each sequence.
      estimates: what nll is: "an upper bound", "exact" or a pseudo-likelihood
        (Objective.estimates).
      units: of nll and stderr.
    """

    nll: float
    stderr: float
    ppl: float
    bits_per_byte: float | None
    tokens: int
    sequences: int
    draws: int
    estimates: str
    units: str = "nats per token"

    def metrics(self) -> dict[str, float]:
        """The fields that a line of metrics.jsonl has, but for those that are None."""
        values = {name: getattr(self, name) for name in ("nll", "stderr", "ppl", "bits_per_byte")}
        return {name: x for name, x in values.items() if x is not None}

    def summary(self) -> str:
        """The numbers in words, without what they were computed from."""
        bytes_ = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits per byte"
        return (
            f"{self.nll:.4f} +- {self.stderr:.4f} {self.units} ({self.estimates}), perplexity "
            f"{self.ppl:.2f}{bytes_}"
        )

    def size(self) -> str:
        """What the numbers were computed from, in words."""
        return (
            f"{counted(self.tokens, 'token')} in {counted(self.sequences, 'sequence')}, "
            f"{counted(self.draws, 'draw')} each"
        )

    def __str__(self) -> str:
        return f"{self.summary()}; {self.size()}"


def make_bound(network: Network, loss: Loss, process: Process, draws: int) -> BoundFn:
    """Builds bound(params, batch, index) -> (nats[b], tokens[b]) for `estimate`; to be jitted.

    index: int32[b], the number of each sequence in the held-out text. Only it determines the
    corruptions, `draws` of them with noise levels stratified within the sequence.
    """
    grouped = make_groups(network, loss, process, draws, groups=1)

    def bound(params: Params, batch: Batch, index: Array) -> tuple[Array, Array]:
        nats, tokens = grouped(params, batch, index, 0)
        return nats[:, 0], tokens

    return bound


def make_groups(
    network: Network, loss: Loss, process: Process, draws: int, groups: int, stratified: bool = True
) -> GroupedFn:
    """Builds grouped(params, batch, index, seed) -> (nats float32[b, groups], tokens int32[b]).

    Every sequence is corrupted `draws` times, in `groups` independent groups of equal size. nats
    are the mean of the loss within each group; the Monte Carlo error can be estimated from two
    groups. Noise levels are stratified within a group, or independent.

    index: int32[b], the number of each sequence in the text. Only it and the seed (a number, traced
    or not) determine the corruptions, so that neither batch size nor devices change them.
    """
    each = draws // groups

    def grouped(params: Params, batch: Batch, index: Array, seed: int) -> tuple[Array, Array]:
        keys = example_keys(step_key(seed, 0), index)
        u = uniforms(keys, (groups if stratified else draws,))
        apply, _ = with_source(network, params, batch)

        def draw(total: Array, d: Array) -> tuple[Array, None]:
            group = d // each
            draw_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, d)
            level = stratify(u[:, group], d % each, each) if stratified else u[:, d]
            nats = loss(apply, params, batch, Noise(level, draw_keys), process).bound
            assert nats is not None, "the objectives that estimate a likelihood have a bound"
            return total.at[:, group].add(nats / each), None

        total, _ = jax.lax.scan(draw, jnp.zeros((len(index), groups)), jnp.arange(draws))
        return total, batch["valid"].sum(axis=1)

    return grouped


@dataclass(frozen=True)
class Mean:
    """Nats per token, a ratio of sums, and its standard errors; nan where one is undefined.

    Attributes:
      nll: the sum of nats over the sum of tokens.
      stderr: over sequences, so that it holds the choice of text and the draws.
      mc_stderr: of the draws only, for this very text.
      text_stderr: what remains of `stderr` without `mc_stderr`.
    """

    nll: float
    stderr: float
    mc_stderr: float
    text_stderr: float


def mean(nats: np.ndarray, tokens: np.ndarray) -> Mean:
    """The ratio of sums, its error over sequences (linearised) and over independent groups.

    Args:
      nats: float[N, groups], independent unbiased estimates of each sequence's bound. mc_stderr
        needs two groups, stderr two sequences.
      tokens: int[N], at least 1 each.
    """
    count, groups = nats.shape
    nats = nats.astype(np.float64)
    of_sequence = nats.mean(axis=1)
    nll = of_sequence.sum() / tokens.sum()
    stderr = mc_stderr = math.nan
    if count > 1:
        residual = of_sequence - nll * tokens
        stderr = math.sqrt((residual**2).sum() / (count - 1) / count) / float(tokens.mean())
    if groups > 1:
        mc_stderr = math.sqrt((nats.var(axis=1, ddof=1) / groups).sum()) / int(tokens.sum())
    text = math.sqrt(max(0.0, stderr**2 - mc_stderr**2)) if count > 1 and groups > 1 else math.nan
    return Mean(float(nll), float(stderr), float(mc_stderr), text)


def estimate(
    bound: BoundFn,
    params: Params,
    batches: Iterable[Batch],
    draws: int,
    bytes_per_token: float,
    estimates: str,
) -> Likelihood:
    """Runs a `make_bound` function over held-out batches; rows without a valid token are skipped.

    Args:
      bound: of `make_bound`.
      params: of the network.
      batches: of held-out text, in order.
      draws: of `bound`, for the record.
      bytes_per_token: of the text.
      estimates: what the bound is, for the record.
    """
    found, first = [], 0
    for batch in batches:
        rows = batch["tokens"].shape[0]
        found.append(bound(params, batch, jnp.arange(first, first + rows)))
        first += rows
    nats, tokens = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    nats, tokens = nats[tokens > 0], tokens[tokens > 0]
    ratio = mean(nats[:, None], tokens)
    return Likelihood(
        nll=ratio.nll,
        stderr=ratio.stderr,
        ppl=perplexity(ratio.nll),
        bits_per_byte=ratio.nll / math.log(2) / bytes_per_token,
        tokens=int(tokens.sum()),
        sequences=len(nats),
        draws=draws,
        estimates=estimates,
    )
