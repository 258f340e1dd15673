"""The Monte-Carlo bound against a distribution whose entropy is known, vocabulary 3, length 4."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddm_jax.config import defaults, resolve
from ddm_jax.diffusion import d3pm
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES, grid
from ddm_jax.evaluation.likelihood.monte_carlo import estimate, make_bound, make_groups, mean
from ddm_jax.experiment import make_parts
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import BOUND, LossOutput
from ddm_jax.settle import settle
from tests.enumerable import all_masks, all_sequences, exact_denoiser, random_joint, wrong_denoiser
from tests.models.small import random_params
from tests.programs import RUNS_LONG

VOCAB, LENGTH, PADDING = 3, 4, 2
JOINT = random_joint(VOCAB, LENGTH)
ENTROPY = -(JOINT * np.log(JOINT)).sum() / LENGTH  # nats per token
RADD = [name for name in OBJECTIVES if name.startswith("radd_")]
PROCESS = Absorbing(SCHEDULES["log_linear"].make(), mask_id=VOCAB)
WRONG = SimpleNamespace(apply=wrong_denoiser(VOCAB, LENGTH), encode=None)


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


@functools.cache
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
@pytest.mark.slow
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
    found = run(WRONG.apply, [whole(texts(10_000))])
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
    nats, tokens = bound_of(WRONG.apply)({}, batch, np.arange(runs * size))
    found = [
        estimate(
            lambda params, batch, index: (batch["nats"], batch["n"]), {}, [part], 1, 1.0, BOUND
        )
        for part in split({"tokens": batch["tokens"], "nats": nats, "n": tokens}, size)
    ]
    spread = np.std([b.nll for b in found], ddof=1)
    stated = np.sqrt(np.mean([b.stderr**2 for b in found]))
    assert stated == pytest.approx(spread, rel=5 * 0.035)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["radd_ao", "radd_t_dce"])
def test_batch_size_changes_nothing(name):
    batch, apply = whole(texts(60)), WRONG.apply
    once = run(apply, [batch], name, draws=3)
    again = run(apply, split(batch, 7), name, draws=3)
    assert again.sequences == once.sequences
    np.testing.assert_allclose([again.nll, again.stderr], [once.nll, once.stderr], rtol=1e-5)


def test_rows_without_text_change_nothing():
    batch, apply = whole(texts(50)), WRONG.apply
    longer = {name: np.pad(rows, ((0, 14), (0, 0))) for name, rows in batch.items()}
    once, padded = (run(apply, split(b, 16)) for b in (batch, longer))
    assert (padded.sequences, padded.tokens) == (50, 50 * LENGTH)
    np.testing.assert_allclose([padded.nll, padded.stderr], [once.nll, once.stderr], rtol=1e-6)


def test_same_text_elsewhere_is_corrupted_otherwise_and_again_alike():
    bound = bound_of(WRONG.apply, "radd_t_dce")
    batch = whole(np.zeros((20, LENGTH)))
    nats, _ = bound({}, batch, np.arange(20))
    again, _ = bound({}, batch, np.arange(20))
    shifted, _ = bound({}, batch, np.arange(1, 21))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["radd_ao", "radd_lambda_dce"])
def test_draws_reduce_the_variance_without_moving_the_mean(name):
    """8 draws of one text: at least sqrt 8 less noise, for they are stratified, less 15 %.

    The standard errors over 4,000 copies of it are known to a few percent.
    """
    batch, apply = whole(np.repeat(texts(1), 4_000, axis=0)), WRONG.apply
    one, eight = (run(apply, [batch], name, draws=draws) for draws in (1, 8))
    assert one.stderr / eight.stderr > 0.85 * math.sqrt(8)
    assert abs(one.nll - eight.nll) < 5 * math.hypot(one.stderr, eight.stderr)


@functools.cache
def tiny_network(vocab=VOCAB, length=LENGTH):
    """(network, params, process): two layers of width 32, with answers far from uniform."""
    config = defaults()
    config.model.update({"width": 32, "depth": 2, "heads": 2, "max_length": length})
    config = settle(resolve(config))
    process, _, network = make_parts(config, vocab)
    return network, random_params(network, spread=0.3), process


def cross_entropies(network, params):
    """-log p(x_i | the rest of x) summed over the masked i: float64[V^L texts, 2^L masks]."""
    x0, masks = all_sequences(VOCAB, LENGTH), all_masks(LENGTH)
    xt = np.where(masks[None], VOCAB, x0[:, None]).reshape(-1, LENGTH)
    target = np.repeat(x0, len(masks), axis=0)
    logit, lse = jax.jit(lambda p, x, y: network.apply(p, x).target(y))(params, xt, target)
    nats = np.where(xt == VOCAB, np.asarray(lse - logit, np.float64), 0).sum(1)
    return nats.reshape(len(x0), len(masks))


def exact_bound(nats, alpha=None):
    """By enumeration of the masks: any order, or T steps with alpha[0..T]; float64[texts]."""
    k = all_masks(LENGTH).sum(1)
    if alpha is None:
        chance = 1 / np.array([math.comb(LENGTH, i) for i in k])
        weight = np.where(k > 0, chance / np.maximum(k, 1), 0)
    else:
        s, t = alpha[:-1, None], alpha[1:, None]
        weight = ((s - t) / (1 - t) * (1 - t) ** k * t ** (LENGTH - k)).sum(0)
    return nats @ weight


def measured(network, params, process, name, tokens, draws, groups=2, seed=0, **options):
    loss = functools.partial(OBJECTIVES[name].loss, **options)
    grouped = jax.jit(make_groups(network, loss, process, draws, groups))
    nats, counts = grouped(params, whole(tokens), np.arange(len(tokens)), seed)
    return mean(np.asarray(nats), np.asarray(counts))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RADD, "mdlm", "md4"])
def test_estimators_agree_with_enumeration(name):
    """Of all 81 texts under a wrong network; within 5 errors of the draws (wrong once in 10^6).

    Times stop at 1e-3, for which 0.2 % are allowed; the error itself is below 1 %.
    """
    exact = exact_bound(cross_entropies(WRONG, {})).mean() / LENGTH
    assert exact > 1.05 * np.log(VOCAB)
    texts = np.repeat(all_sequences(VOCAB, LENGTH), 32, axis=0)
    found = measured(WRONG, {}, PROCESS, name, texts, draws=32)
    assert found.mc_stderr < 0.01 * exact
    assert abs(found.nll - exact) < 5 * found.mc_stderr + 2e-3 * exact


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mdlm", "md4", "d3pm"])
def test_bounds_in_a_few_steps_agree_with_enumeration(name):
    """T = 2; within 5 errors of the draws, which tell it from the bound in continuous time."""
    nats, process, options = cross_entropies(WRONG, {}), PROCESS, {"steps": 2}
    alpha = grid(process.schedule, 2)
    if name == "d3pm":
        process, options = d3pm.absorbing(alpha, VOCAB), {}
        alpha = process.schedule.alpha_bar
    exact = exact_bound(nats, alpha).mean() / LENGTH
    texts = np.repeat(all_sequences(VOCAB, LENGTH), 32, axis=0)
    found = measured(WRONG, {}, process, name, texts, draws=32, **options)
    if name == "md4":  # its prior
        exact += np.asarray(process.schedule.alpha(1.0)) * np.log(VOCAB)
    assert abs(found.nll - exact) < 5 * found.mc_stderr
    assert exact - exact_bound(nats).mean() / LENGTH > 8 * found.mc_stderr


@pytest.mark.slow
@pytest.mark.parametrize("draws", [2, 16])
def test_error_of_the_draws_is_their_spread(draws):
    """50 seeds on the same 24 texts: 49 (spread / stated)^2 is chi-square, but for its rare tails.

    It is held to the quantiles of 1e-3 in all, so a right error fails once in 1,000 choices of
    seeds; one that is wrong by sqrt 2 passes in one of 10.
    """
    network, params, process = tiny_network(vocab=20, length=8)
    tokens = np.random.default_rng(0).integers(0, 20, (24, 8))
    groups = make_groups(network, OBJECTIVES["radd_t_dce"].loss, process, draws, groups=2)
    grouped, found = jax.jit(groups), []
    for seed in range(50):
        nats, counts = grouped(params, whole(tokens), np.arange(24), seed)
        found.append(mean(np.asarray(nats), np.asarray(counts)))
    spread = np.var([m.nll for m in found], ddof=1)
    stated = np.mean([m.mc_stderr**2 for m in found])
    low, high = scipy.stats.chi2.ppf([5e-4, 1 - 5e-4], 49) / 49
    assert low < spread / stated < high
    # nor does a seed move the mean: their mean agrees with that of other texts' numbers
    assert len({m.nll for m in found}) == 50


def test_errors_of_a_ratio_by_hand():
    """Two texts of 1 and 3 tokens, two groups each."""
    found = mean(np.array([[1.0, 3.0], [6.0, 8.0]]), np.array([1, 3]))
    assert found.nll == (2 + 7) / 4
    # residuals 2 - 2.25 and 7 - 6.75
    assert found.stderr == pytest.approx(math.sqrt((0.0625 + 0.0625) / 1 / 2) / 2)
    # the mean of two groups has variance (1^2 + 1^2) / 2, twice
    assert found.mc_stderr == pytest.approx(math.sqrt(1 + 1) / 4)
    assert found.text_stderr == 0  # less than the draws alone explain
    one = mean(np.array([[1.0]]), np.array([2]))
    assert one.nll == 0.5
    assert math.isnan(one.stderr)
    assert math.isnan(one.mc_stderr)
    assert math.isnan(one.text_stderr)


@pytest.mark.slow
def test_choice_of_text_is_what_the_draws_do_not_explain():
    """200 runs of 50 texts, 8 draws: stderr is the spread; text_stderr that of the true bounds.

    All runs together agree with the enumeration of a transformer, within 5 errors of the draws.
    """
    network, params, process = tiny_network()
    exact = exact_bound(cross_entropies(network, params))
    runs, size = 200, 50
    rows = np.random.default_rng(5).integers(0, len(exact), (runs, size))
    groups = make_groups(network, OBJECTIVES["radd_ao"].loss, process, 8, 2)
    tokens = all_sequences(VOCAB, LENGTH)[rows.reshape(-1)]
    grouped = jax.jit(groups, compiler_options=RUNS_LONG)
    drawn, _ = grouped(params, whole(tokens), np.arange(runs * size), 0)
    together = mean(np.asarray(drawn), np.full(runs * size, LENGTH))
    assert abs(together.nll - exact[rows].mean() / LENGTH) < 5 * together.mc_stderr
    drawn = np.asarray(drawn).reshape(runs, size, 2)
    found = [mean(x, np.full(size, LENGTH)) for x in drawn]
    spread = np.std([m.nll for m in found], ddof=1)
    # both are known to 5 %: 4 of these errors
    assert np.sqrt(np.mean([m.stderr**2 for m in found])) == pytest.approx(spread, rel=0.2)
    text = exact.std() / math.sqrt(size) / LENGTH
    stated = np.sqrt(np.mean([m.stderr**2 - m.mc_stderr**2 for m in found]))
    assert stated == pytest.approx(text, rel=0.2)


def test_groups_are_independent_and_stratified_within():
    """Levels of 8 draws in 2 groups: a quarter each in every group; another u in the other."""
    seen = []

    def loss(apply, params, batch, noise, process):
        del apply, params, process
        jax.debug.callback(lambda u: seen.append(np.asarray(u)), noise.u, ordered=True)
        return LossOutput(noise.u, noise.u)

    network = SimpleNamespace(apply=loss, encode=None)
    grouped = make_groups(network, loss, None, 8, 2)
    nats, _ = grouped({}, whole(np.zeros((5, LENGTH))), np.arange(5), 7)
    jax.effects_barrier()
    levels = np.stack(seen).reshape(2, 4, 5)
    np.testing.assert_allclose(nats, levels.mean(1).T, rtol=1e-6)
    for group in levels:
        np.testing.assert_array_equal(
            np.sort((group * 4).astype(int), axis=0), np.arange(4)[:, None].repeat(5, 1)
        )
    offsets = (levels * 4) % 1
    np.testing.assert_allclose(offsets, offsets[:, :1].repeat(4, 1), atol=1e-5)
    assert (np.abs(offsets[0, 0] - offsets[1, 0]) > 1e-4).all()
