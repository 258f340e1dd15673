"""The Monte-Carlo bound against a distribution whose entropy is known, vocabulary 3, length 4."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.evaluation.likelihood import estimate, make_bound
from ddm_jax.models.network import Readout
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import BOUND
from tests.enumerable import all_sequences, exact_denoiser, random_joint, wrong_denoiser

VOCAB, LENGTH, PADDING = 3, 4, 2
JOINT = random_joint(VOCAB, LENGTH)
ENTROPY = -(JOINT * np.log(JOINT)).sum() / LENGTH  # nats per token
RADD = [name for name in OBJECTIVES if name.startswith("radd_")]
PROCESS = Absorbing(SCHEDULES["log_linear"](), mask_id=VOCAB)


def texts(count, seed=0):
    """Sequences from the joint distribution, int32[count, LENGTH]."""
    rows = np.random.default_rng(seed).choice(JOINT.size, size=count, p=JOINT.reshape(-1))
    return all_sequences(VOCAB, LENGTH)[rows]


def whole(tokens):
    return {"tokens": np.asarray(tokens, np.int32), "valid": np.ones(np.shape(tokens), bool)}


def split(batch, size):
    """Batches of `size` rows, the last one shorter."""
    rows = len(batch["tokens"])
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)]


def bound_of(apply, name="radd_ao", draws=1, process=PROCESS):
    network = SimpleNamespace(apply=apply, encode=None)
    return jax.jit(make_bound(network, OBJECTIVES[name].loss, process, draws))


def run(apply, batches, name="radd_ao", draws=1, bytes_per_token=1.0):
    return estimate(bound_of(apply, name, draws), {}, batches, draws, bytes_per_token, BOUND)


def ignoring_padding(apply):
    """The network on the first LENGTH positions; at the padding it gives the token 1 no chance."""

    def padded(params, tokens):
        out = apply(params, tokens[:, :LENGTH])
        hidden = jnp.pad(out.hidden, ((0, 0), (0, PADDING), (0, 0)))
        return Readout(hidden.at[:, LENGTH:, 1].set(-50.0), out.kernel, out.bias, VOCAB)

    return padded


@pytest.mark.parametrize("name", RADD)
def test_exact_denoiser_gives_the_entropy_of_the_text(name):
    """Within 5 standard errors (wrong once in 10^6), of 40,000 texts that fill 4 of 6 positions.

    A tenth of the rows has no text. The draws of t stop at 1e-3, which the tolerance allows for.
    """
    tokens = np.pad(texts(40_000), ((0, 0), (0, PADDING)), constant_values=1)
    valid = np.broadcast_to(np.arange(LENGTH + PADDING) < LENGTH, tokens.shape).copy()
    valid[::10] = False
    apply = ignoring_padding(exact_denoiser(JOINT))
    found = run(apply, [{"tokens": tokens, "valid": valid}], name, draws=2)
    assert (found.sequences, found.tokens, found.draws) == (36_000, 36_000 * LENGTH, 2)
    assert abs(found.nll - ENTROPY) < 5 * found.stderr + 2e-3 * ENTROPY
    assert found.stderr < 0.01 * ENTROPY


def test_wrong_denoiser_gives_more():
    found = run(wrong_denoiser(VOCAB, LENGTH), [whole(texts(10_000))])
    assert found.nll - ENTROPY > 10 * found.stderr


def test_standard_error_is_the_spread_over_texts_and_corruptions():
    """Over 400 runs of 100 texts; their spread is known to 3.5 %, 5 of which are allowed.

    A text has 2 to 4 tokens, so that the number of tokens varies as well.
    """
    runs, size = 400, 100
    batch = whole(texts(runs * size))
    lengths = np.random.default_rng(1).integers(2, LENGTH + 1, runs * size)
    batch["valid"] = np.arange(LENGTH) < lengths[:, None]
    # numbered through, so that every run has corruptions of its own
    nats, tokens = bound_of(wrong_denoiser(VOCAB, LENGTH))({}, batch, jnp.arange(runs * size))
    found = [
        estimate(
            lambda params, batch, index: (batch["nats"], batch["n"]), {}, [part], 1, 1.0, BOUND
        )
        for part in split({"tokens": batch["tokens"], "nats": nats, "n": tokens}, size)
    ]
    spread = np.std([b.nll for b in found], ddof=1)
    stated = np.sqrt(np.mean([b.stderr**2 for b in found]))
    assert stated == pytest.approx(spread, rel=5 * 0.035)


@pytest.mark.parametrize("name", ["radd_ao", "radd_t_dce"])
def test_batch_size_changes_nothing(name):
    batch, apply = whole(texts(60)), wrong_denoiser(VOCAB, LENGTH)
    once = run(apply, [batch], name, draws=3)
    again = run(apply, split(batch, 7), name, draws=3)
    assert again.sequences == once.sequences
    np.testing.assert_allclose([again.nll, again.stderr], [once.nll, once.stderr], rtol=1e-5)


def test_rows_without_text_change_nothing():
    batch, apply = whole(texts(50)), wrong_denoiser(VOCAB, LENGTH)
    longer = {name: np.pad(rows, ((0, 14), (0, 0))) for name, rows in batch.items()}
    once, padded = (run(apply, split(b, 16)) for b in (batch, longer))
    assert (padded.sequences, padded.tokens) == (50, 50 * LENGTH)
    np.testing.assert_allclose([padded.nll, padded.stderr], [once.nll, once.stderr], rtol=1e-6)


def test_same_text_elsewhere_is_corrupted_otherwise_and_again_alike():
    bound = bound_of(wrong_denoiser(VOCAB, LENGTH), "radd_t_dce")
    batch = whole(np.zeros((20, LENGTH)))
    nats, _ = bound({}, batch, jnp.arange(20))
    again, _ = bound({}, batch, jnp.arange(20))
    shifted, _ = bound({}, batch, jnp.arange(1, 21))
    np.testing.assert_array_equal(again, nats)
    np.testing.assert_allclose(shifted[:-1], nats[1:], rtol=1e-6)
    assert len(np.unique(nats)) > 10


def test_uniform_model_of_256_tokens_has_8_bits_a_token():
    """Its any-order bound is n log 256 for n = 1..8 tokens: per token there is no variance."""

    def uniform(params, tokens):
        hidden = jnp.zeros((*tokens.shape, 1))
        return Readout(hidden, jnp.zeros((1, 256)), jnp.zeros(256), 256)

    bound = bound_of(uniform, process=Absorbing(PROCESS.schedule, mask_id=256))
    batch = whole(np.arange(64).reshape(8, 8))
    batch["valid"] = np.tri(8, dtype=bool)
    for bytes_per_token, bits in ((1.0, 8), (4.0, 2)):
        found = estimate(bound, {}, [batch], 1, bytes_per_token, BOUND)
        assert found.bits_per_byte == pytest.approx(bits, rel=1e-6)
        assert found.nll == pytest.approx(math.log(256), rel=1e-6)
        assert found.ppl == pytest.approx(256, rel=1e-5)
        assert found.stderr == pytest.approx(0, abs=1e-6)
        names = ("nll", "stderr", "ppl", "bits_per_byte")
        assert found.metrics() == {name: getattr(found, name) for name in names}


@pytest.mark.parametrize("name", ["radd_ao", "radd_lambda_dce"])
def test_draws_reduce_the_variance_without_moving_the_mean(name):
    """8 draws of one text: at least sqrt 8 less noise, for they are stratified, less 15 %.

    The standard errors over 4,000 copies of it are known to a few percent.
    """
    batch, apply = whole(np.repeat(texts(1), 4_000, axis=0)), wrong_denoiser(VOCAB, LENGTH)
    one, eight = (run(apply, [batch], name, draws=draws) for draws in (1, 8))
    assert one.stderr / eight.stderr > 0.85 * math.sqrt(8)
    assert abs(one.nll - eight.nll) < 5 * math.hypot(one.stderr, eight.stderr)
