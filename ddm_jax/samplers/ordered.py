"""Any-order autoregressive sampling (Ou et al. 2024, arXiv:2406.03736, section 3.3).

A network without time input that gives p(x_i | any set of tokens) is an autoregressive model in
every order of the positions: sampling one position at a time is exact.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess, random_ranks
from ddm_jax.errors import UserError
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.event_driven import split_keys, walk
from ddm_jax.samplers.signature import SampleSpec, Stats


def ordered(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
    order: str | Sequence[int] = "random",
) -> tuple[Array, Stats]:
    """Samples the free positions of each sequence in turn.

    Arguments and results are those of `ancestral`; spec.steps is not read. order is "left" (the
    first position comes first), "right" (the last one), "random" (another order in each sequence),
    or the positions themselves, int[L] or text such as "2,0,1", where those that are fixed are
    skipped. nfe is the number of free positions.

    Raises:
      UserError: the order is not one of all positions.
    """
    count, length = prompt.shape
    when, what = split_keys(key, count)
    text = order if isinstance(order, str) else ",".join(str(int(i)) for i in order)
    ranks = random_ranks(when, length) if text == "random" else _ranks(text, length)
    start = jnp.where(fixed, prompt, process.mask_id)

    def evaluate(x: Array, rank: Array, read: Array | None) -> Readout:
        del rank  # without time input
        return apply(params, x, read=read)

    return walk(evaluate, what, start, jnp.broadcast_to(ranks, prompt.shape), process.mask_id, spec)


def _ranks(order: str, length: int) -> np.ndarray:
    """The place of each position in the order: int32[L]. Raises UserError as `ordered`."""
    named = {"left": range(length), "right": range(length)[::-1]}
    try:
        positions = [int(i) for i in named.get(order, order.split(","))]
    except ValueError:
        positions = []
    if sorted(positions) != list(range(length)):
        raise UserError(
            f"config.sampler.order={order!r} is not an order of {length} positions: use left, "
            f"right, random, or the numbers 0 to {length - 1}, each once, separated by commas."
        )
    return np.argsort(positions).astype(np.int32)
