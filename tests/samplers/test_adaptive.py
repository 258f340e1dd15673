"""Adaptive unmasking against numpy's own reading of its rules, and against enumerated laws.

Chi-squares reject the right law once in 10^6.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.models import readout as readout_module
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import draw
from ddm_jax.samplers.adaptive import confidence, entropy, margin
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import random_joint, table_network
from tests.laws import chi_square
from tests.programs import outputs
from tests.visible import exact_table, wrong_table

NAMES = {"confidence": confidence, "margin": margin, "entropy": entropy}
VOCAB, LENGTH, COUNT = 3, 3, 36_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)
MASKS = [VOCAB] * LENGTH


def doubt(name, p):
    best = sorted(p, reverse=True)
    return {
        "confidence": -best[0],
        "margin": best[1] - best[0],
        "entropy": -sum(q * np.log(q) for q in p if q > 0),
    }[name]


def chosen(name, p, masked, masks, step, steps, gamma):
    """The positions that are revealed next. p: float64[L, V]. masked: list. masks: at the start."""
    surest = sorted(masked, key=lambda i: (doubt(name, p[i]), i))
    if name != "entropy":
        parts = np.array_split(np.arange(masks), min(steps, masks))
        return surest[: len(parts[step])]
    h = [doubt(name, p[i]) for i in surest]
    number = 1
    while number < len(h) and sum(h[: number + 1]) - max(h[: number + 1]) <= gamma:
        number += 1
    return surest[:number]


def law_of(name, p, start=MASKS, steps=1, gamma=0.0):
    """p(x), float64[V^L], and p(nfe), float64[L + 1], of a network p [(V + 1)^L, L, V]."""
    law, nfe = np.zeros((VOCAB,) * LENGTH), np.zeros(LENGTH + 1)
    digits = (VOCAB + 1) ** np.arange(LENGTH)[::-1]

    def follow(x, step, chance):
        masked = [i for i in range(LENGTH) if x[i] == VOCAB]
        if not masked:
            law[tuple(x)] += chance
            nfe[step] += chance
            return
        now = p[x @ digits]
        new = chosen(name, now, masked, start.count(VOCAB), step, steps, gamma)
        for tokens in itertools.product(range(VOCAB), repeat=len(new)):
            later = x.copy()
            later[new] = tokens
            follow(later, step + 1, chance * now[new, tokens].prod())

    follow(np.array(start), 0, 1.0)
    np.testing.assert_allclose([law.sum(), nfe.sum()], 1)
    return law.reshape(-1), nfe


WRONG = wrong_table(VOCAB, LENGTH, seed=29)  # the three rules disagree on it


def half_certain():
    """WRONG, but some of its answers are certain of their best token."""
    certain = np.where(WRONG.max(-1, keepdims=True) == WRONG, 0, -1e9)
    some = np.random.default_rng(1).random(WRONG.shape[:2]) < 0.4
    return np.where(some[..., None], certain, WRONG)


LOG_P = {
    "exact": exact_table(JOINT),
    "wrong": WRONG,
    "half certain": half_certain(),
}


@functools.cache
def sampler(name, network, options):
    process = Absorbing(SCHEDULES["log_linear"].make(), VOCAB)
    apply = table_network(np.float32(LOG_P[network]))
    return jax.jit(functools.partial(NAMES[name], apply, {}, process=process, **dict(options)))


def sample(name, network="wrong", steps=1, prompt=None, fixed=None, seed=0, **options):
    """(tokens, nfe)."""
    prompt = np.zeros((COUNT, LENGTH), np.int32) if prompt is None else prompt
    fixed = np.zeros(prompt.shape, bool) if fixed is None else fixed
    run, spec = sampler(name, network, tuple(options.items())), SampleSpec(jnp.int32(steps))
    tokens, stats = run(
        key=step_key(seed, 0), prompt=jnp.asarray(prompt), fixed=jnp.asarray(fixed), spec=spec
    )
    return np.asarray(tokens), np.asarray(stats.nfe)


def assert_nfe(nfe, law):
    counts, expected = np.bincount(nfe, minlength=len(law)), len(nfe) * law
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-6, df=len(counts) - 1) or len(counts) == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["confidence", "margin"])
def test_samples_follow_the_law_of_the_rule(name, steps):
    law, law_of_nfe = law_of(name, np.exp(LOG_P["wrong"]), steps=steps)
    tokens, nfe = sample(name, steps=steps)
    assert law_of_nfe[min(steps, LENGTH)] == pytest.approx(1)
    np.testing.assert_array_equal(nfe, np.full(COUNT, min(steps, LENGTH)))
    statistic, limit = chi_square(tokens, law)
    assert statistic < limit
    if steps == LENGTH:
        for other in set(NAMES) - {name}:
            law, _ = law_of(other, np.exp(LOG_P["wrong"]), steps=steps)
            statistic, limit = chi_square(tokens, law)
            assert statistic > limit


@pytest.mark.parametrize(
    ("network", "gamma"), [("wrong", 0.8), ("wrong", np.inf), ("half certain", 0.0)]
)
def test_samples_follow_the_law_of_the_entropy_bound(network, gamma):
    law, law_of_nfe = law_of("entropy", np.exp(LOG_P[network]), gamma=gamma)
    tokens, nfe = sample("entropy", network, gamma=gamma)
    statistic, limit = chi_square(tokens, law)
    assert statistic < limit
    assert_nfe(nfe, law_of_nfe)


@pytest.mark.parametrize("name", NAMES)
def test_one_position_a_step_samples_the_joint_also_given_fixed_positions(name):
    """gamma = 0 reveals more only where they are certain. What is fixed: every token everywhere.

    What the prompt says elsewhere is ignored.
    """
    options = {"gamma": 0.0} if name == "entropy" else {}
    free, each = 100_000, 8_000
    position, given = (np.repeat(x.reshape(-1), each) for x in np.indices((LENGTH, VOCAB)))
    position, given = (np.append(np.full(free, -1), x) for x in (position, given))
    fixed = position[:, None] == np.arange(LENGTH)
    prompt = np.where(fixed, given[:, None], 1).astype(np.int32)
    tokens, nfe = sample(name, "exact", LENGTH, prompt, fixed, **options)
    np.testing.assert_array_equal(nfe, (~fixed).sum(1))
    statistic, limit = chi_square(tokens[:free], JOINT.reshape(-1))
    assert statistic < limit
    for i, token in itertools.product(range(LENGTH), range(VOCAB)):
        law = np.where(np.indices(JOINT.shape)[i] == token, JOINT, 0).reshape(-1)
        here = tokens[(position == i) & (given == token)]
        statistic, limit = chi_square(here, law / law.sum())
        assert statistic < limit


def test_law_tends_to_the_joint_as_gamma_falls():
    """Each step loses at most gamma: the whole diverges by at most gamma times the mean nfe."""
    share = []
    for seed, gamma in itertools.product(range(10), (1.0, 0.5, 0.2, 0.0)):
        joint = random_joint(VOCAB, LENGTH, seed)
        law, nfe = law_of("entropy", np.exp(exact_table(joint)), gamma=gamma)
        kl = (joint.reshape(-1) * np.log(joint.reshape(-1) / law)).sum()
        bound = gamma * nfe @ np.arange(LENGTH + 1)
        assert kl <= bound + 1e-12
        share.append(kl / max(bound, 1e-12))
    assert max(share) > 0.05


LONG, WIDE, ROWS = 9, 5, 12


def long_table(ties):
    """log p [97, LONG, WIDE], or one row of it for all positions: then only ties are broken."""
    rng = np.random.default_rng(4)
    log_p = np.log(rng.dirichlet(np.full(WIDE, 0.5), size=(97, LONG)))
    return np.tile(log_p[:, :1], (1, LONG, 1)) if ties else log_p


def row_of(tokens):
    """Which answers a state of LONG tokens gets."""
    return (tokens * np.arange(1, LONG + 1) ** 2).sum(-1) % 97


SEEN = []  # what the network below is given


@functools.cache
def watched_sampler(name, gamma):
    def apply(log_p, tokens):
        jax.debug.callback(lambda x: SEEN.append(np.asarray(x)), tokens)
        return Readout(log_p[row_of(tokens)], jnp.eye(WIDE), jnp.zeros(WIDE), WIDE)

    options = {"gamma": gamma} if name == "entropy" else {}
    process = Absorbing(SCHEDULES["log_linear"].make(), WIDE)
    return jax.jit(functools.partial(NAMES[name], apply, process=process, **options))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("name", "steps", "gamma"),
    [("confidence", 4, 0), ("margin", 4, 0), ("margin", 30, 0), ("entropy", 1, 1.5)],
)
def test_every_step_is_that_of_the_rule(name, steps, gamma, ties):
    """At temperature 0, which leaves the scores as they are, all states are known."""
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, WIDE, (ROWS, LONG)).astype(np.int32)
    fixed = rng.random(prompt.shape) < np.linspace(0, 0.9, ROWS)[:, None]
    fixed[-1] = True
    log_p = long_table(ties)
    spec = SampleSpec(jnp.int32(steps), temperature=jnp.float32(0))
    SEEN.clear()
    tokens, stats = watched_sampler(name, gamma)(
        params=jnp.float32(log_p), key=step_key(0, 0), prompt=prompt, fixed=fixed, spec=spec
    )
    jax.effects_barrier()

    x = np.where(fixed, prompt, WIDE)
    masks, nfe, states = (x == WIDE).sum(1), np.zeros(ROWS, int), []
    while (x == WIDE).any():
        states.append(x.copy())
        for b in range(ROWS):
            masked = np.flatnonzero(x[b] == WIDE).tolist()
            if masked:
                p = np.exp(log_p[row_of(x[b])])
                new = chosen(name, p, masked, masks[b], nfe[b], steps, gamma)
                x[b, new], nfe[b] = p.argmax(-1)[new], nfe[b] + 1
    np.testing.assert_array_equal(tokens, x)
    np.testing.assert_array_equal(stats.nfe, nfe)
    seen = sorted(SEEN, key=lambda x: -(x == WIDE).sum())
    np.testing.assert_array_equal(seen, states)
    if name != "entropy":
        np.testing.assert_array_equal(nfe, np.minimum(masks, steps))


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_nans_ends(name):
    def apply(params, tokens):
        return Readout(jnp.full((*tokens.shape, 1), jnp.nan), jnp.ones((1, 2)), jnp.zeros(2), 2)

    prompt, fixed = jnp.zeros((2, 4), jnp.int32), jnp.arange(8).reshape(2, 4) % 3 == 0
    process, spec = Absorbing(SCHEDULES["log_linear"].make(), 2), SampleSpec(3)
    _, stats = jax.jit(functools.partial(NAMES[name], apply, {}, process=process, spec=spec))(
        step_key(0, 0), prompt, fixed
    )
    assert (stats.nfe <= 4).all()


@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_sequence_depends_on_the_key_and_its_number_alone(name):
    prompt = np.random.default_rng(0).integers(0, VOCAB, (COUNT, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    options = {"gamma": 0.8} if name == "entropy" else {}
    tokens, _ = sample(name, "wrong", 2, prompt, fixed, **options)
    np.testing.assert_array_equal(tokens[fixed], prompt[fixed])
    few, _ = sample(name, "wrong", 2, prompt[:5], fixed[:5], **options)
    np.testing.assert_array_equal(few, tokens[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    fewer = np.concatenate([fixed[:5], fixed[5:] & (np.arange(LENGTH) > 0)])
    changed, _ = sample(name, "wrong", 2, others, fewer, **options)
    np.testing.assert_array_equal(changed[:5], tokens[:5])
    assert (sample(name, "wrong", 2, prompt, fixed, seed=1, **options)[0] != tokens).any()


@pytest.mark.parametrize("name", NAMES)
def test_no_array_has_a_logit_for_every_token_of_the_batch(name, monkeypatch):
    rows, length, vocab = 4, 256, 1000
    monkeypatch.setattr(readout_module, "LOGIT_BYTES", rows * length * vocab)  # a quarter at once
    monkeypatch.setattr(draw, "LOGIT_BYTES", rows * length * vocab)

    def apply(params, tokens):
        hidden = jnp.zeros((*tokens.shape, 2))
        return Readout(hidden, jnp.zeros((2, vocab)), jnp.zeros(vocab), vocab)

    prompt, process = (
        jnp.zeros((rows, length), jnp.int32),
        Absorbing(SCHEDULES["linear"].make(), vocab),
    )
    run = functools.partial(NAMES[name], apply, {}, process=process, spec=SampleSpec(8))
    program = jax.make_jaxpr(run)(step_key(0, 0), prompt, prompt > 0)
    largest = max(out.size for _, out in outputs(program.jaxpr))
    assert rows * vocab <= largest <= rows * length * vocab / 4


@pytest.mark.parametrize("gamma", [-0.1, np.nan])
def test_a_bound_below_zero_is_refused(gamma):
    with pytest.raises(UserError, match=r"config\.sampler\.gamma"):
        sample("entropy", gamma=gamma)
