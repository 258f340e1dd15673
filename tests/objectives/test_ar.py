"""The autoregressive baseline gives the exact likelihood of the distribution that it samples."""

import functools

import jax
import numpy as np

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.objectives import OBJECTIVES, ar
from ddm_jax.objectives.signature import EXACT
from tests.batch import batch_of
from tests.enumerable import all_sequences, random_joint
from tests.models.published import params_from_state_dict
from tests.visible import exact_table, visible_network, wrong_table

VOCAB, LENGTH = 3, 4
JOINT = random_joint(VOCAB, LENGTH)
X0 = all_sequences(VOCAB, LENGTH)


def seeing_the_left(params, tokens, attend):
    """A network that looks up in a table what it sees."""
    return visible_network(params, ahead=1)(None, tokens, attend=attend)


@functools.partial(jax.jit, static_argnums=0)
def run(apply, params, batch, mask_id):
    return ar.ar(apply, params, batch, None, Absorbing(SCHEDULES["log_linear"].make(), mask_id))


def nll_of(params, tokens, valid=True, apply=seeing_the_left, mask_id=VOCAB):
    out = run(apply, params, batch_of(tokens, valid), mask_id)
    np.testing.assert_array_equal(out.loss, out.bound)
    return np.asarray(out.loss)


def test_likelihood_of_any_network_sums_to_one(float64):
    """So that what is reported is a likelihood, and no position sees its own token."""
    got = nll_of(wrong_table(VOCAB, LENGTH), X0)
    np.testing.assert_allclose(np.exp(-got).sum(), 1, rtol=1e-12)
    assert OBJECTIVES["ar"].estimates == EXACT


def test_padding_carries_no_loss(float64):
    """What is valid has the likelihood of the prefix."""
    valid = np.arange(LENGTH) < 3
    got = nll_of(exact_table(JOINT), X0, valid)
    prefix = np.repeat(JOINT.sum(-1).reshape(-1), VOCAB)
    np.testing.assert_allclose(got, -np.log(prefix), rtol=1e-12)


def test_likelihoods_equal_oracle(oracle):
    """MDLM's autoregressive network, log p(x_{l+1} | x_0 .. x_l), whose first token is given."""
    weights, _ = oracle("mdlm", "ar_weights")
    arrays, meta = oracle("mdlm", "forward")
    model, x, want = meta["config"]["model"], arrays["x_ar"], arrays["ar"]
    vocab = want.shape[-1] - 1
    config = ModelConfig(
        width=model["hidden_size"],
        depth=model["n_blocks"],
        heads=model["n_heads"],
        time="none",
        norm_bias=False,
    )
    network = make_network(config, vocab)
    params = params_from_state_dict(weights, config.heads, padded_vocab(vocab))

    @jax.jit
    def log_p(params, x):
        return jax.nn.log_softmax(network.apply(params, x, attend="causal").logits())

    np.testing.assert_allclose(log_p(params, x), want[..., :vocab], rtol=1e-4, atol=1e-4)
    for row, log_p in zip(x, want, strict=True):
        got = nll_of(params, row[None, 1:], apply=network.apply, mask_id=row[0])
        picked = log_p[np.arange(len(row) - 1), row[1:]]
        np.testing.assert_allclose(got, -picked.sum(), rtol=1e-4)
