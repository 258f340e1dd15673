"""Adaptive unmasking: the positions of whose tokens the network is surest come next.

confidence: highest max_v p_v first (MaskGIT, Chang et al. 2022, arXiv:2202.04200, and LLaDA).
margin: largest lead of the best token over the second (Kim et al. 2025, arXiv:2502.06768).
entropy: lowest H(p), several at once within a bound (Ben-Hamu et al. 2025, arXiv:2505.24857).
One position a step is exact in any order; several at once are drawn as if they were independent.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.randomness import example_keys
from ddm_jax.errors import UserError
from ddm_jax.models.network import Apply, Params
from ddm_jax.samplers.draw import fill
from ddm_jax.samplers.signature import SampleSpec, Stats


def confidence(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples the n free positions of each sequence in N = min(spec.steps, n) steps, its nfe.

    Arguments and results are those of `ancestral`. Each step reveals n / N positions, rounded up in
    the first n mod N steps and down in the others. Which ones depends on p itself, before
    temperature, top-k and top-p.
    """

    def doubt(p: Array) -> Array:
        return -p.max(axis=-1)

    return _surest_first(apply, params, key, prompt, fixed, process, spec, doubt, _evenly(spec))


def margin(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples as `confidence`, by the lead of the best token over the second."""

    def doubt(p: Array) -> Array:
        first, second = jnp.moveaxis(jax.lax.top_k(p, 2)[0], -1, 0)
        behind: Array = second - first
        return behind

    return _surest_first(apply, params, key, prompt, fixed, process, spec, doubt, _evenly(spec))


def entropy(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
    gamma: float = 0.1,
) -> tuple[Array, Stats]:
    """Samples as many positions at once as keep sum H - max H <= gamma (in nats), at least one.

    Arguments and results are those of `ancestral`; spec.steps is not read, and nfe differs from
    sequence to sequence. Sum H - max H bounds how far the positions of a step are from independent
    given the rest; gamma = 0 reveals one at a time, with those that are certain.

    Raises:
      UserError: gamma is below 0.
    """
    if not gamma >= 0:
        raise UserError(
            f"config.sampler.gamma={gamma} is out of range: give a number of at least 0."
        )

    def doubt(p: Array) -> Array:
        return entr(p).sum(axis=-1)

    def number(step: Array, masks: Array, doubts: Array) -> Array:
        # of the first k the largest is the k-th: what counts are the k - 1 before it
        return 1 + (jnp.cumsum(doubts, axis=1) <= gamma).sum(axis=1)

    return _surest_first(apply, params, key, prompt, fixed, process, spec, doubt, number)


def _evenly(spec: SampleSpec) -> Callable[[Array, Array, Array], Array]:
    def number(step: Array, masks: Array, doubts: Array) -> Array:
        steps = jnp.clip(spec.steps, 1, jnp.maximum(masks, 1))
        return masks // steps + (step < masks % steps)

    return number


def _surest_first(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
    doubt: Callable[[Array], Array],
    number: Callable[[Array, Array, Array], Array],
) -> tuple[Array, Stats]:
    """Reveals at each step the masks of least doubt; of equal ones, the first.

    Args:
      apply, params, key, prompt, fixed, process, spec: as in `ancestral`.
      doubt: p float32[N, V] -> float32[N].
      number: how many masks to reveal, (step int32[], masks at the start int32[B], doubts
        float32[B, L]) -> int32[B]; each row of the doubts starts with those of the masks that are
        left, in ascending order.
    """
    count, length = prompt.shape
    keys = example_keys(key, jnp.arange(count))
    start = jnp.where(fixed, prompt, process.mask_id)
    masks = (start == process.mask_id).sum(axis=1)
    positions = jnp.broadcast_to(jnp.arange(length), start.shape)

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] == process.mask_id).any()

    def reveal(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, nfe, step = carry
        masked = x == process.mask_id
        readout = apply(params, x)
        doubts = readout.read(lambda logits: doubt(jax.nn.softmax(logits, axis=-1)))
        # masks first even where doubts are nan: a loop that reveals none would not end
        _, doubts, order = jax.lax.sort((~masked, doubts, positions), num_keys=2, is_stable=True)
        ranks = jnp.argsort(order, axis=1)
        chosen = masked & (ranks < number(step, masks, doubts)[:, None])
        return fill(keys, x, chosen, readout, spec), nfe + masked.any(axis=1), step + 1

    nothing = jnp.zeros(count, jnp.int32)
    tokens, nfe, _ = jax.lax.while_loop(go_on, reveal, (start, nothing, jnp.int32(0)))
    return tokens, Stats(nfe)
