"""The event-driven sampler: the network runs only at steps where a sequence changes.

Under masking the step at which a position is revealed does not depend on the network, and the
network's output at a step matters only where something is revealed. So all these steps are drawn
first, and every sequence walks its own list of the steps at which it changes, each at its own time:
of N steps of log-linear noise, N (1 - (1 - 1/N)^l) on average for l masks (the count of RADD's
cached sampler, Ou et al. 2024, arXiv:2406.03736, section 4.1). A batch needs as many evaluations as
its slowest sequence. The law is that of `ancestral` in N steps, with or without time input.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.randomness import example_keys, uniforms
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.draw import FEW, fill, positions_of, write
from ddm_jax.samplers.signature import Integer, SampleSpec, Stats


def event_driven(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples as `ancestral` in spec.steps equal steps of time.

    Arguments and results are those of `ancestral`; nfe is the number of steps at which a sequence
    changes.
    """
    count, length = prompt.shape
    when, what = split_keys(key, count)
    step_of = reveal_steps(uniforms(when, (length,)), process, spec.steps)
    start = jnp.where(fixed, prompt, process.mask_id)

    def evaluate(x: Array, step: Array, read: Array | None) -> Readout:
        return apply(params, x, process.condition(1 - step / spec.steps), read=read)

    return walk(evaluate, what, start, step_of, process.mask_id, spec)


def split_keys(key: Array, count: int) -> Array:
    """Keys for when positions are revealed, and for their tokens, per sequence: key[2, count]."""
    keys = jax.vmap(jax.random.split)(example_keys(key, jnp.arange(count)))
    return jnp.moveaxis(keys, 1, 0)


def reveal_steps(u: Array, process: MaskingProcess, steps: Integer) -> Array:
    """The step, 0 .. steps - 1, at which each position is revealed: float32[...] -> int32[...].

    Step i goes from time 1 - i / steps to 1 - (i + 1) / steps and leaves a mask with probability
    (1 - alpha(s)) / (1 - alpha(1)) in all; u uniform in (0, 1) falls below that or not. The last
    step reveals all.
    """

    def still_masked(i: Array) -> Array:
        """Whether the mask is left after step i."""
        s = jnp.maximum(1 - (i + 1) / steps, 0)
        return (i < steps - 1) & (u < process.stay_masked(s, 1.0))

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        masked = still_masked(middle)
        return jnp.where(masked, middle + 1, low), jnp.where(masked, high, middle)

    last = jnp.full(u.shape, steps - 1, jnp.int32)
    halvings = 32 - jax.lax.clz(jnp.asarray(steps, jnp.int32))
    step: Array
    step, _ = jax.lax.fori_loop(0, halvings, halve, (jnp.zeros_like(last), last))
    return step


def walk(
    evaluate: Callable[[Array, Array, Array | None], Readout],
    keys: Array,
    start: Array,
    step_of: Array,
    mask_id: int,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Reveals the masks in the order of their steps, those of equal steps at once.

    Args:
      evaluate: the network, (x int32[B, L], the step of each sequence int32[B], the positions to
        read int32[B, K] or None for all) -> Readout.
      keys: key[B]; that of the token at position i is fold_in(key, i).
      start: int32[B, L].
      step_of: int32[B, L], the step of each position.
      mask_id: the id of the mask.
      spec: how tokens are drawn.

    Returns:
      tokens int32[B, L], and Stats with nfe, the number of steps at which a sequence changes.
    """

    def go_on(carry: tuple[Array, Array]) -> Array:
        return (carry[0] == mask_id).any()

    def reveal(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, nfe = carry
        masked = x == mask_id
        # where nothing is left to reveal the step has no effect, but must be a valid one
        step = jnp.where(masked, step_of, step_of.max()).min(axis=1)
        chosen = masked & (step_of == step[:, None])
        few = min(FEW, x.shape[1])
        x = jax.lax.cond(
            chosen.sum(axis=1).max() <= few,
            lambda: write(keys, x, at := positions_of(chosen, few), evaluate(x, step, at), spec),
            lambda: fill(keys, x, chosen, evaluate(x, step, None), spec),
        )
        return x, nfe + masked.any(axis=1)

    nothing = jnp.zeros(start.shape[0], jnp.int32)
    tokens, nfe = jax.lax.while_loop(go_on, reveal, (start, nothing))
    return tokens, Stats(nfe)
