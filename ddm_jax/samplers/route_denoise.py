"""Route and denoise: RDM's sampler (Zheng et al. 2023, arXiv:2302.05737, section 4.3).

Each step reads the network at all positions and keeps the tokens of which it is surest; the rest is
noise again. The schedule decides how many, the network which: the law is no longer that of the
reverse process, except for absorbing noise with routing="default".
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.randomness import example_keys, uniforms
from ddm_jax.diffusion.uniform import UniformProcess
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.draw import fill
from ddm_jax.samplers.routing import State, falling, lowest, noise_count, noise_rate, route
from ddm_jax.samplers.signature import Integer, SampleSpec, Stats


def rdm(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess | UniformProcess,
    spec: SampleSpec,
    routing: str = "uncond",
    cutoff: str = "linear",
    noise_scale: float = 0.0,
) -> tuple[Array, Stats]:
    """Samples in spec.steps steps, after the last of which nothing is noise.

    Arguments and results are those of `ancestral`, with the options below. The time input at step i
    is that of 1 - i / steps. Scores are log-probabilities at temperature 1, whatever the
    temperature of the draws; temperature 0 takes the best token.

    Args:
      routing: "uncond" or "cond", by the scores (routing.py); "default" reveals with the chance
        (alpha_s - alpha_t) / (1 - alpha_t) of the process, and keeps what is revealed.
      cutoff: "linear" or "cosine", how many positions stay noise after each step.
      noise_scale: times the rate of the cutoff, of the Gumbel noise on the scores that are ranked;
        0 ranks the scores themselves.
    """
    count, length = prompt.shape
    keys = example_keys(key, jnp.arange(count))
    schedule, steps = process.schedule, spec.steps

    def step(i: Array, state: State) -> State:
        t, s = 1 - i / steps, jnp.maximum(1 - (i + 1) / steps, 0)
        what, when, whether, other = split(keys, i, 4)
        readout = apply(params, state.tokens, jnp.full(count, process.condition(t)))
        tokens, scores = denoise(what, state.tokens, ~fixed, readout, spec)

        u = uniforms(when, (length,))
        if routing == "default":
            reveal = schedule.drop(s, t) / schedule.one_minus_alpha(t)
            stays = (u >= reveal) & (i < steps - 1)
        else:
            ranked = scores
            if noise_scale > 0:
                ranked += noise_scale * noise_rate(i, steps, cutoff) * -jnp.log(-jnp.log(u))
            k = noise_count((~fixed).sum(axis=1), i, steps, cutoff)
            stays = lowest(ranked, k, ~fixed)
        falls = falling(state, tokens, scores, stays, routing)

        kept = uniforms(whether, (length,)) < schedule.alpha(t) / schedule.alpha(s)
        noise = jnp.where(state.noised & kept, state.tokens, process.prior(other, length))
        return route(state, tokens, scores, noise, stays, falls)

    (start,) = split(keys, steps, 1)
    start = jnp.where(fixed, prompt, process.prior(start, length))
    state = State(start, jnp.zeros(start.shape, jnp.float32), ~fixed)
    state = jax.lax.fori_loop(0, steps, step, state)
    # 0 where fixed, as they began
    score = state.scores.sum(axis=1) / jnp.maximum((~fixed).sum(axis=1), 1)
    return state.tokens, Stats(nfe=jnp.full(count, steps), score=score)


def split(keys: Array, step: Integer, number: int) -> Array:
    """The keys of a step, `number` for each sequence: key[B] -> key[number, B]."""
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step), number))(keys)
    return jnp.moveaxis(keys, 1, 0)


def denoise(
    keys: Array, x: Array, free: Array, readout: Readout, spec: SampleSpec
) -> tuple[Array, Array]:
    """A token for every free position and its log-probability: int32[B, L], float32[B, L]."""

    def drawn() -> tuple[Array, Array]:
        tokens = fill(keys, x, free, readout, spec)
        logit, lse = readout.target(tokens)
        return tokens, (logit - lse).astype(jnp.float32)

    def best() -> tuple[Array, Array]:
        def read(logits: Array) -> tuple[Array, Array]:
            score = logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1)
            return logits.argmax(axis=-1).astype(jnp.int32), score.astype(jnp.float32)

        tokens, scores = readout.read(read)
        return jnp.where(free, tokens, x), scores

    tokens, scores = jax.lax.cond(jnp.asarray(spec.temperature) > 0, drawn, best)
    return tokens, scores
