"""D3PM's processes against explicit products of explicit matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.config import ProcessConfig, ScheduleConfig
from ddm_jax.diffusion import d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.discrete_schedules import d3pm_cosine, d3pm_linear, d3pm_mutual_information
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_process
from tests import chains

STEPS, VOCAB = 5, 4
MATRIX = [name for name in chains.NAMES if name != "absorbing"]
GRID = [(s, t) for t in range(1, STEPS + 1) for s in range(t)]


def keys_of(step, count):
    return example_keys(step_key(0, step), jnp.arange(count))


@pytest.fixture(scope="module", params=MATRIX)
def case(request):
    """(process, Qbar explicit, name)."""
    with jax.enable_x64(True):
        process = chains.make(request.param, STEPS, VOCAB)
    return process, chains.products(request.param, STEPS, VOCAB), request.param


@pytest.mark.parametrize("name", chains.NAMES)
def test_every_explicit_matrix_is_row_stochastic_and_keeps_its_prior(name):
    for q in chains.one_step(name, STEPS, VOCAB):
        assert q.min() >= -1e-12
        np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12)
        np.testing.assert_allclose(
            chains.prior(name, VOCAB) @ q, chains.prior(name, VOCAB), atol=1e-12
        )


def test_rows_and_marginals_are_the_products(case, float64):
    process, product, _ = case
    p = np.random.default_rng(0).dirichlet(np.ones(VOCAB), size=3)
    run = jax.jit(lambda t: (process.row(jnp.arange(VOCAB), t), process.marginal(p, t)))
    for t in range(STEPS + 1):
        row, marginal = run(np.float64(t / STEPS))
        np.testing.assert_allclose(row, product[t], rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(marginal, p @ product[t], rtol=1e-7, atol=1e-12)


def test_strides_compose_to_the_products(case, float64):
    """Qbar_s Q_{s+1} .. Q_t = Qbar_t for every s < t, and columns are those of the product.

    A stride of no step moves nothing.
    """
    process, product, name = case
    chain = chains.one_step(name, STEPS, VOCAB)
    run = jax.jit(lambda s, t: process.column(jnp.arange(VOCAB), s, t))
    for s, t in GRID:
        column = np.asarray(run(*np.float64([s / STEPS, t / STEPS])))
        stride = np.linalg.multi_dot([np.eye(VOCAB), *chain[s:t], np.eye(VOCAB)])
        np.testing.assert_allclose(column.T, stride, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(product[s] @ column.T, product[t], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(run(*np.float64([0.4, 0.4])), np.eye(VOCAB), atol=1e-15)


def test_prior_kl_is_that_of_the_last_product(case, float64):
    process, product, name = case
    prior = chains.prior(name, VOCAB)
    want = (product[-1] * np.log(product[-1] / prior)).sum(1)
    kl = jax.jit(process.prior_kl)(np.arange(VOCAB))
    np.testing.assert_allclose(kl, want, rtol=1e-6, atol=1e-10)


def test_absorbing_is_the_product_of_its_matrices(float64):
    """Marginals 1 - t/T, and the posterior of a mask over every stride by Bayes' rule."""
    process = chains.make("absorbing", STEPS, VOCAB)
    product, chain = (f("absorbing", STEPS, VOCAB) for f in (chains.products, chains.one_step))

    @jax.jit
    def run(s, t):
        return process.schedule.alpha(t), process.reveal(s, t), process.stay_masked(s, t)

    for s, t in GRID:
        alpha, reveal, stay = run(*np.float64([s / STEPS, t / STEPS]))
        np.testing.assert_allclose(alpha, product[t][0, 0], atol=1e-12)
        stride = np.linalg.multi_dot([np.eye(VOCAB + 1), *chain[s:t], np.eye(VOCAB + 1)])
        posterior = product[s][1] * stride[:, VOCAB] / product[t][1, VOCAB]
        np.testing.assert_allclose(reveal, posterior[1], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(stay, posterior[VOCAB], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(product[-1], np.tile(chains.prior("absorbing", VOCAB), (5, 1)))


@pytest.mark.parametrize("name", chains.NAMES)
def test_network_is_told_the_step(name):
    process = chains.make(name, 50, VOCAB)
    step = np.arange(51)
    np.testing.assert_array_equal(process.condition(np.float32(step / 50)), step)


def test_bridge_of_uniform_noise_is_the_posterior_of_explicit_matrices(float64):
    """q(x_s | x_t, x_0) by Bayes' rule, as a mixture of a redraw, x_0 and x_t."""
    process = chains.make("uniform", STEPS, VOCAB)
    product, chain = (f("uniform", STEPS, VOCAB) for f in (chains.products, chains.one_step))
    x0, xt = (x.reshape(1, -1) for x in np.indices((VOCAB, VOCAB)))
    chances = jax.jit(process.bridge_chances)
    for s, t in GRID:
        stride = np.linalg.multi_dot([np.eye(VOCAB), *chain[s:t], np.eye(VOCAB)])
        law = product[s][x0] * stride.T[xt]
        found = jax.device_get(chances(x0, xt, np.array([s / STEPS]), np.array([t / STEPS])))
        redrawn, shown = (x[..., None] for x in found)
        mixture = redrawn / VOCAB + shown * np.eye(VOCAB)[x0]
        mixture = mixture + (1 - redrawn - shown) * np.eye(VOCAB)[xt]
        np.testing.assert_allclose(mixture, law / law.sum(-1, keepdims=True), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", chains.NAMES)
def test_corruption_follows_the_product(name):
    """Chi-squares of 20,000 tokens a time, which reject the right law once in 10^6; padding."""
    process = chains.make(name, STEPS, VOCAB)
    product = chains.products(name, STEPS, VOCAB)
    count = 2_000
    x0 = np.full((count, 11), 1)
    movable = np.broadcast_to(np.arange(11) < 10, x0.shape)

    @jax.jit
    def corrupt(step, t):
        return process.corrupt(keys_of(step, count), x0, t, movable)

    for t in (1, 3, STEPS):
        xt = np.asarray(corrupt(t, np.full(count, t / STEPS, np.float32)))
        assert (xt[:, 10] == 1).all()
        law = product[t][1]
        counts, expected = np.bincount(xt[:, :10].ravel(), minlength=len(law)), 10 * count * law
        assert counts[law < 1e-9].sum() == 0
        keep = law >= 1e-9
        statistic = ((counts - expected)[keep] ** 2 / expected[keep]).sum()
        assert statistic <= chi2.isf(1e-6, df=max(keep.sum() - 1, 1))


def test_tokens_of_gaussian_noise_do_not_depend_on_how_many_sequences_are_drawn_at_once(
    monkeypatch,
):
    """Bit for bit; no more bytes of laws are held at once than is said."""
    process, size, length = chains.make("gaussian", STEPS, VOCAB), 12, 7
    x0 = np.random.default_rng(0).integers(0, VOCAB, (size, length))
    t = np.float32(np.arange(size) % STEPS / STEPS + 1 / STEPS)
    keys = jax.jit(keys_of, static_argnums=1)(2, size)
    one = jax.jit(process.corrupt)
    one_by_one = [one(keys[i : i + 1], x0[i : i + 1], t[i : i + 1])[0] for i in range(size)]
    for together, turns in ((12, 1), (11, 2), (5, 3), (1, 12), (0.5, 12)):
        monkeypatch.setattr(type(process), "chunk_bytes", int(4 * length * VOCAB * together))
        several = jax.jit(lambda *given: process.corrupt(*given)).trace(keys, x0, t)
        np.testing.assert_array_equal(several.lower().compile()(keys, x0, t), one_by_one)
        assert f"length={turns}\n" in str(several.jaxpr)


def test_clock_of_uniform_jumps_is_their_alpha_bar(float64):
    """A complete graph moves as uniform noise: then c_t must give alpha_bar itself."""
    alpha_bar = d3pm_cosine(7)
    everywhere = d3pm_nearest.neighbour_process(alpha_bar, chains.table(VOCAB), VOCAB - 1)
    uniform = chains.d3pm.uniform(alpha_bar, VOCAB)
    both = jax.jit(lambda t: [each.row(jnp.arange(VOCAB), t) for each in (everywhere, uniform)])
    for t in range(7):  # the last step is held at the time when all has mixed
        ours, want = both(np.float64(t / 7))
        np.testing.assert_allclose(ours, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["uniform", "gaussian", "nearest"])
@pytest.mark.slow
def test_float32_keeps_the_small_moves_of_a_thousand_steps(name):
    """One step, and a row of the first steps, to 1e-5 of what moves in all, vocabulary 64."""
    embedding = np.random.default_rng(0).normal(size=(64, 6))

    def process():
        return {
            "uniform": lambda: chains.d3pm.uniform(d3pm_cosine(1000), 64),
            "gaussian": lambda: d3pm_gaussian.gaussian(d3pm_linear(1000), 64),
            "nearest": lambda: d3pm_nearest.neighbour_process(
                d3pm_mutual_information(1000), embedding, 5
            ),
        }[name]()

    def laws(dtype):
        made, x = process(), jnp.arange(64)

        @jax.jit
        def run(first, second, late, later):
            columns = made.column(x, first, second), made.column(x, late, later)
            return made.row(x, second), *columns

        return jax.device_get(run(*np.array([0.001, 0.002, 0.7, 0.701], dtype)))

    single = laws(np.float32)
    with jax.enable_x64(True):
        double = laws(np.float64)
    for ours, want in zip(single, double, strict=True):
        moved = want * (1 - np.eye(64))
        assert moved.sum(1).max() > 0
        assert abs((ours - want) * (1 - np.eye(64))).sum(1).max() < 1e-5 * moved.sum(1).max()
        np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "vocab"), [("d3pm_gaussian", 8192), ("d3pm_nearest", 50257)])
def test_matrices_that_do_not_fit_are_refused_in_one_sentence(name, vocab):
    config = ProcessConfig(name=name, steps=1000, neighbours=10, embedding="")
    with pytest.raises(UserError, match=rf"config.process.name='{name}'.*GiB.*V={vocab}.*T=1000"):
        make_process(config, ScheduleConfig(name="d3pm_linear"), vocab)


def test_nearest_says_what_is_wrong_with_its_embedding(tmp_path):
    def make(path, neighbours=2, vocab=6):
        config = ProcessConfig("d3pm_nearest", 4, neighbours=neighbours, embedding=str(path))
        return make_process(config, ScheduleConfig(name="d3pm_mutual_information"), vocab)

    with pytest.raises(UserError, match=r"config.process.embedding='' is not a file"):
        make("")
    path = tmp_path / "table.npy"
    path.write_text("no table")
    with pytest.raises(UserError, match="cannot be read"):
        make(path)
    np.save(path, np.eye(5))
    with pytest.raises(UserError, match=r"shape \(5, 5\).*float\[6, D\]"):
        make(path)
    np.save(path, np.eye(6))
    with pytest.raises(UserError, match=r"config.process.neighbours=6 is not below"):
        make(path, neighbours=6)
    two_parts = np.repeat([[1.0, 0.01], [0.01, 1.0]], 3, axis=0)
    np.save(path, two_parts + 1e-6 * np.arange(12).reshape(6, 2))
    with pytest.raises(UserError, match=r"config.process.neighbours=2 leaves .* in 2 parts"):
        make(path)
