"""The autoregressive baseline: next-token cross entropy under a causal mask."""

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.attention_masks import shifted
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives.signature import Batch, LossOutput, Noise


def ar(apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing) -> LossOutput:
    """sum_i -log p(x_i given x_1 .. x_{i-1}): the exact -log p(x), without any noise."""
    del noise
    x0, valid = batch["tokens"], batch["valid"]
    readout = apply(params, shifted(x0, process.mask_id), attend="causal")
    nll = readout.cross_entropy(x0, valid).sum(axis=1)
    return LossOutput(nll, nll)
