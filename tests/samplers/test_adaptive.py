"""Adaptive unmasking, step by step, against the rules in numpy (adaptive_rules.py).

The law of its samples is in test_laws.py.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.models import readout as readout_module
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import draw
from ddm_jax.samplers.adaptive import confidence, entropy, margin
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import random_joint
from tests.programs import outputs
from tests.samplers.adaptive_rules import adaptive_law, chosen
from tests.visible import exact_table

NAMES = {"confidence": confidence, "margin": margin, "entropy": entropy}
VOCAB, LENGTH = 3, 3
MASKS = [VOCAB] * LENGTH


def test_law_tends_to_the_joint_as_gamma_falls():
    """Each step loses at most gamma: the whole diverges by at most gamma times the mean nfe."""
    share = []
    for seed, gamma in itertools.product(range(10), (1.0, 0.5, 0.2, 0.0)):
        joint = random_joint(VOCAB, LENGTH, seed)
        law, nfe = adaptive_law("entropy", np.exp(exact_table(joint)), MASKS, gamma=gamma)
        kl = (joint.reshape(-1) * np.log(joint.reshape(-1) / law)).sum()
        bound = gamma * nfe @ np.arange(LENGTH + 1)
        assert kl <= bound + 1e-12
        share.append(kl / max(bound, 1e-12))
    assert max(share) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_one_position_a_step_has_the_law_of_the_joint(name):
    """gamma = 0 reveals more only where they are certain."""
    joint = random_joint(VOCAB, LENGTH, seed=3)
    law, _ = adaptive_law(name, np.exp(exact_table(joint)), MASKS, steps=LENGTH)
    np.testing.assert_allclose(law, joint.reshape(-1), rtol=1e-9)


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
        entropy(*[None] * 7, gamma=gamma)
