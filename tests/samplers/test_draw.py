"""Temperature, top-k, top-p, and draws at some positions of many, against plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chi2

from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.draw import FEW, draw, fill, filtered
from ddm_jax.samplers.draw import ROWS as READ_ROWS
from ddm_jax.samplers.signature import SampleSpec
from tests.programs import outputs


def plain(logits, temperature, top_k, top_p):
    """The law of one row in float64, token by token."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    best = sorted(range(len(p)), key=lambda v: -p[v])[: top_k or len(p)]
    total, sum_before, kept = sum(p[v] for v in best), 0.0, []
    for v in best:
        if top_p == 1 or sum_before < top_p * total:
            kept.append(v)
        sum_before += p[v]
    return np.where(np.isin(range(len(p)), kept), p, 0) / sum(p[v] for v in kept)


ROWS = np.random.default_rng(0).normal(scale=2, size=(40, 23)).astype(np.float32)
jitted = jax.jit(filtered)


@pytest.mark.parametrize(
    "options",
    [
        (1.0, 0, 1.0),
        (0.3, 0, 1.0),
        (2.5, 0, 1.0),
        (1.0, 1, 1.0),
        (1.0, 4, 1.0),
        (1.0, 100, 1.0),
        (1.0, 0, 0.9),
        (1.0, 0, 0.3),
        (1.0, 0, 1e-6),
        (0.5, 6, 0.8),
        (3.0, 6, 0.8),
    ],
)
def test_filtered_is_temperature_then_top_k_then_top_p(options):
    kept = np.asarray(jitted(ROWS, SampleSpec(1, *options)))
    np.testing.assert_array_equal(kept.max(-1), 0)
    want = [plain(row.astype(float), *options) for row in ROWS]
    np.testing.assert_allclose(softmax(kept, axis=-1), want, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("options", [{"top_p": 1.0}, {"top_k": ROWS.shape[1]}, {"top_k": 10**6}])
def test_filters_that_keep_all_change_no_bit(options):
    rows = ROWS - np.float32(80) * (np.arange(ROWS.shape[1]) == 3)  # of probability 1e-35
    kept = jitted(rows.astype(np.float32), SampleSpec(1, **options))
    np.testing.assert_array_equal(kept, rows - rows.max(-1, keepdims=True))


def test_temperature_zero_takes_the_best_token():
    keys = example_keys(step_key(0, 0), np.arange(len(ROWS)))
    for options in ({}, {"top_k": 5}, {"top_p": 0.5}):
        drawn = jax.jit(draw)(keys, ROWS, SampleSpec(1, temperature=0.0, **options))
        np.testing.assert_array_equal(drawn, ROWS.argmax(-1))


def test_equal_tokens_at_the_edge_are_all_kept():
    kept = jitted(np.zeros((1, 4), np.float32), SampleSpec(1, top_k=2))
    np.testing.assert_array_equal(kept, np.zeros((1, 4)))


def test_bfloat16_logits_are_those_of_their_values():
    rows = ROWS.astype(jnp.bfloat16)
    for spec in (SampleSpec(1, 0.7), SampleSpec(1, top_p=0.9)):
        of_bfloat16 = jitted(rows, spec)
        assert of_bfloat16.dtype == jnp.float32
        np.testing.assert_array_equal(of_bfloat16, jitted(rows.astype(np.float32), spec))


VOCAB, LENGTH, COUNT = 5, 70, 6
MANY = READ_ROWS // COUNT


def readout(logits):
    vocab = logits.shape[-1]
    return Readout(jnp.asarray(logits), jnp.eye(vocab), jnp.zeros(vocab), vocab)


LOGITS = np.random.default_rng(1).normal(size=(COUNT, LENGTH, VOCAB)).astype(np.float32)
MASKED = np.full((COUNT, LENGTH), VOCAB, np.int32)
TRACES = []


@jax.jit
def fill_once(keys, x, chosen, logits, spec):
    TRACES.append(1)
    return fill(keys, x, chosen, readout(logits), spec)


def filled(chosen, rows=slice(None), spec=None, seed=0):
    keys = example_keys(step_key(seed, 0), jnp.arange(COUNT))[rows]
    spec = spec or SampleSpec(jnp.int32(1), jnp.float32(1), jnp.int32(0), jnp.float32(1))
    return np.asarray(fill_once(keys, MASKED[rows], chosen[rows], LOGITS[rows], spec))


def some(*numbers):
    """bool[COUNT, LENGTH] with so many chosen in each row."""
    rng = np.random.default_rng(2)
    return np.array([rng.permutation(LENGTH) < n for n in np.resize(numbers, COUNT)])


EACH_NUMBER = [(0,), (1,), (FEW,), (FEW + 1,), (MANY,), (MANY + 1,), (LENGTH,), (0, 3, LENGTH)]


@pytest.mark.parametrize("numbers", EACH_NUMBER, ids=str)
def test_fill_writes_where_chosen_and_its_draws_know_no_chunks(numbers):
    """Whatever else is chosen, in its row or in others, a position gets the same token."""
    chosen = some(*numbers)
    x = filled(chosen)
    np.testing.assert_array_equal(x[~chosen], VOCAB)
    assert (x[chosen] < VOCAB).all()
    everything = filled(np.ones_like(chosen))
    np.testing.assert_array_equal(x[chosen], everything[chosen])
    few = chosen & (np.cumsum(chosen, axis=1) <= FEW)
    np.testing.assert_array_equal(filled(few)[few], everything[few])


def test_fill_depends_on_the_key_of_its_row_alone():
    chosen = some(3, LENGTH)
    np.testing.assert_array_equal(filled(chosen, slice(2, 4)), filled(chosen)[2:4])
    assert (filled(chosen, seed=1)[chosen] != filled(chosen)[chosen]).any()


@pytest.mark.parametrize("most", [FEW, LENGTH])
def test_small_memory_changes_no_draw(most, monkeypatch):
    """With room for the logits of three positions of every row."""
    module = __import__("ddm_jax.samplers.draw", fromlist=["draw"])
    monkeypatch.setattr(module, "LOGIT_BYTES", 3 * 4 * COUNT * VOCAB)
    chosen = some(most, 0, 1)
    keys = example_keys(step_key(0, 0), jnp.arange(COUNT))
    run = functools.partial(fill, readout=readout(LOGITS), spec=SampleSpec(1))
    np.testing.assert_array_equal(jax.jit(run)(keys, MASKED, chosen), filled(chosen))


def test_what_is_drawn_may_change_without_compiling_again():
    filled(some(4))
    number = len(TRACES)
    best = np.where(some(4), LOGITS.argmax(-1), VOCAB)
    for temperature, top_k, top_p in ((0, 0, 1), (1, 1, 1), (1, 0, 1e-6)):
        spec = SampleSpec(
            jnp.int32(3), jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p)
        )
        np.testing.assert_array_equal(filled(some(4), spec=spec), best)
    assert len(TRACES) == number


@pytest.mark.slow
@pytest.mark.parametrize("positions", [1, 30])
def test_fill_draws_from_the_filtered_law(positions):
    """At every position its own law, position by position independent; wrong once in 10^6."""
    rows = 20_000
    rng = np.random.default_rng(3)
    at = np.sort(rng.permutation(LENGTH)[:positions])
    chosen = np.broadcast_to(np.isin(np.arange(LENGTH), at), (rows, LENGTH))
    table = rng.normal(size=(LENGTH, VOCAB)).astype(np.float32)
    spec = SampleSpec(1, temperature=0.8, top_p=0.85)

    @jax.jit
    def run(keys):
        logits = jnp.broadcast_to(table, (rows, LENGTH, VOCAB))
        x = jnp.full((rows, LENGTH), VOCAB, jnp.int32)
        return fill(keys, x, jnp.asarray(chosen), readout(logits), spec)

    x = np.asarray(run(example_keys(step_key(0, 0), jnp.arange(rows))))
    statistic, cells = 0.0, 0
    for i in at:
        law = plain(table[i].astype(float), 0.8, 0, 0.85)
        counts = np.bincount(x[:, i], minlength=VOCAB)
        assert counts[law == 0].sum() == 0
        statistic += ((counts - rows * law)[law > 0] ** 2 / (rows * law[law > 0])).sum()
        cells += (law > 0).sum() - 1
    assert statistic < chi2.isf(1e-6, df=cells)
    if positions > 1:
        pairs = np.bincount(x[:, at[0]] * VOCAB + x[:, at[1]], minlength=VOCAB**2)
        law = np.outer(*(plain(table[i].astype(float), 0.8, 0, 0.85) for i in at[:2])).reshape(-1)
        expected = rows * law[law > 0]
        statistic = ((pairs[law > 0] - expected) ** 2 / expected).sum()
        assert statistic < chi2.isf(1e-6, df=len(expected) - 1)


def test_no_more_is_drawn_at_random_than_is_read_at_once():
    length, vocab = 1024, 500
    hidden = jnp.zeros((COUNT, length, 3))
    given = Readout(hidden, jnp.zeros((3, vocab)), jnp.zeros(vocab), vocab)
    x = jnp.zeros((COUNT, length), jnp.int32)
    keys = example_keys(step_key(0, 0), jnp.arange(COUNT))
    program = jax.make_jaxpr(functools.partial(fill, readout=given))(
        keys, x, x > 0, spec=SampleSpec(1)
    )
    found = list(outputs(program.jaxpr))
    random = [out.size for name, out in found if "random" in name or "threefry" in name]
    assert COUNT * FEW * vocab <= max(random) <= COUNT * MANY * vocab
    assert max(out.size for _, out in found) <= COUNT * MANY * vocab


def test_random_numbers_for_all_positions_would_be_seen():
    keys = example_keys(step_key(0, 0), jnp.arange(COUNT))
    program = jax.make_jaxpr(draw)(keys, jnp.zeros((COUNT, 1024, 500)), SampleSpec(1))
    found = outputs(program.jaxpr)
    assert max(out.size for name, out in found if "random" in name) >= COUNT * 1024 * 500
