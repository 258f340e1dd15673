"""AdamW with warm-up and clipping, and the exponential moving average of SEDD and RADD."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddm_jax.config import OptimConfig

DECAYED = ("kernel", "embedding")  # weight decay leaves norms and biases alone


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """lr after n updates: lr (n + 1) / warmup_steps, then constant or falling to 0 at `steps`.

    Or without end, for inverse_sqrt: lr sqrt(warmup_steps / (n + 1)) after the warm-up, lr /
    sqrt(n + 1) where there is none (Vaswani et al. 2017, arXiv:1706.03762, section 5.3; fairseq).
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


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay shrinks: matrices and embeddings, by name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def ema_update(ema: Any, params: Any, updates: Array, decay: float) -> Any:
    """ema + (1 - d)(params - ema), d = min(decay, (1 + n)/(10 + n)) at the n-th update, n >= 1."""
    d = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda e, p: e + (1 - d).astype(e.dtype) * (p - e), ema, params)


def _inverse_sqrt(config: OptimConfig) -> optax.Schedule:
    """By updates since the warm-up."""
    start = max(config.warmup_steps, 1)
    return lambda n: config.lr * jnp.sqrt(start / (config.warmup_steps + n + 1))
