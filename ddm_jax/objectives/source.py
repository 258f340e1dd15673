"""What a source adds to a loss: a memory of it for the network, and a loss of the target's length.

Every objective of text is one of translation too, once the memory is bound to `apply`: the loss is
that of p(target | source, length). The length head learns p(length | source) in addition, as in RDM
(Zheng et al. 2023, arXiv:2302.05737) and Mask-Predict (Ghazvininejad et al. 2019).
"""

import functools

import jax
from jax import Array

from ddm_jax.models.network import Apply, Network, Params
from ddm_jax.models.readout import take_logit
from ddm_jax.models.source_memory import Memory
from ddm_jax.objectives.signature import Batch


def with_source(
    network: Network, params: Params, batch: Batch, dropout_keys: Array | None = None
) -> tuple[Apply, Memory | None]:
    """(apply, memory): the network with the batch's sources bound to it; None where it has none."""
    apply = network.apply
    if dropout_keys is not None:
        apply = functools.partial(apply, dropout_keys=dropout_keys)
    if network.encode is None:
        return apply, None
    memory = network.encode(
        params, batch["source"], batch["source_valid"], dropout_keys=dropout_keys
    )
    return functools.partial(apply, memory=memory, seen=batch["seen"]), memory


def length_loss(memory: Memory, batch: Batch) -> Array:
    """-log p(length | source), nats a sequence: float32[b]; the EOS does not count."""
    length = batch["seen"].sum(axis=1) - 1
    return -take_logit(jax.nn.log_softmax(memory.length_logits), length)
