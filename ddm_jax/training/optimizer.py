"""AdamW with warm-up and clipping, and the exponential moving average of SEDD and RADD."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddm_jax.config import OptimConfig
from ddm_jax.models.network import Params

DECAYED = ("kernel", "embedding")  # weight decay does not apply to norms and biases


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate after n updates.

    It rises as lr (n + 1) / warmup_steps; then it is constant, or falls to 0 at `steps` (cosine,
    linear). inverse_sqrt does not end: lr sqrt(warmup_steps / (n + 1)) after the warm-up, or
    lr / sqrt(n + 1) without one (Vaswani et al. 2017, arXiv:1706.03762, section 5.3; fairseq).

    Args:
      config: lr, warmup_steps, decay.
      steps: updates of the whole run.

    Returns:
      A schedule: n -> learning rate.
    """
    after = max(steps - config.warmup_steps, 1)
    main = {
        "constant": optax.constant_schedule(config.lr),
        "cosine": optax.cosine_decay_schedule(config.lr, after),
        "linear": optax.linear_schedule(config.lr, 0.0, after),
        "inverse_sqrt": _inverse_sqrt(config),
    }[config.decay]
    if not config.warmup_steps:
        return main
    first = config.lr / config.warmup_steps
    warmup = optax.linear_schedule(first, config.lr, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clips by the global norm, then AdamW (Loshchilov & Hutter 2017, eps outside the root)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def decay_mask(params: Params) -> Params:
    """A tree that is True at the leaves that weight decay shrinks: matrices and embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def ema_update(ema: Params, params: Params, updates: Array, decay: float) -> Params:
    """ema + (1 - d)(params - ema), d = min(decay, (1 + n)/(10 + n)) at the n-th update, n >= 1."""
    d = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda e, p: e + (1 - d).astype(e.dtype) * (p - e), ema, params)


def _inverse_sqrt(config: OptimConfig) -> optax.Schedule:
    """A schedule of the updates since the warm-up."""
    start = max(config.warmup_steps, 1)
    return lambda n: config.lr * jnp.sqrt(start / (config.warmup_steps + n + 1))
