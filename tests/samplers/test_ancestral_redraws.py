"""Ancestral sampling of uniform and hybrid noise against the law of its chain, vocabulary 3.

Two positions, and a network that knows p(x0_i | the other position at t) exactly: then each step
is right for each position alone, and the chain samples the joint distribution as its steps grow.
Chi-squares reject the right law once in 10^6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import all_sequences, random_joint
from tests.plug_in import hybrid_matrix, leave_one_out, uniform_matrix

VOCAB, LENGTH, COUNT, P_UNIFORM = 3, 2, 40_000, 0.4
JOINT = random_joint(VOCAB, LENGTH, seed=3)
EPS = 1e-3
SCHEDULE = SCHEDULES["log_linear"].make(eps=EPS)
PROCESSES = {
    "uniform": (Uniform(SCHEDULE, VOCAB), lambda t: uniform_matrix((1 - EPS) * t, VOCAB)),
    "hybrid": (
        Hybrid(SCHEDULE, VOCAB, P_UNIFORM),
        lambda t: hybrid_matrix((1 - EPS) * t, VOCAB, P_UNIFORM),
    ),
}


def knowing(matrix_at, steps):
    """The exact network at the times of the sampler, told apart by sigma."""
    times = 1 - np.arange(steps) / steps
    table = np.stack([leave_one_out(JOINT, matrix_at(t)) for t in times])
    table = jnp.log(jnp.asarray(np.maximum(table, 1e-30), jnp.float32))
    states = len(matrix_at(0.5))

    def apply(params, tokens, sigma):
        step = jnp.round((1 - SCHEDULE.time(sigma)) * steps).astype(int)
        hidden = table[step, tokens[:, 0] * states + tokens[:, 1]]
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    return apply


def law_of_chain(matrix_at, steps, fixed=None):
    """p(x) after `steps` steps by Bayes' rule on the matrices: float64[V, V].

    fixed: (position, token) that stays.
    """
    size = len(matrix_at(0.5))
    states = all_sequences(size, LENGTH)
    prior = matrix_at(1.0)[0]
    prior[:VOCAB] = prior[:VOCAB].mean()  # as many masks, and the tokens uniform
    law = prior[states]
    if fixed:
        law[:, fixed[0]] = states[:, fixed[0]] == fixed[1]
    law = law.prod(1)
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        m_t, m_s = matrix_at(t), matrix_at(s)
        of_xs = leave_one_out(JOINT, m_t) @ m_s[:VOCAB]
        forward = np.linalg.solve(m_s, m_t)
        moves = of_xs * forward.T[states]
        moves = moves / moves.sum(-1, keepdims=True)  # [states, L, size]
        if fixed:
            moves[:, fixed[0]] = np.eye(size)[fixed[1]]
        law = law @ moves[:, np.arange(LENGTH), states].prod(-1)
    law = law.reshape(size, size)
    np.testing.assert_allclose(law[:VOCAB, :VOCAB].sum(), 1)
    return law[:VOCAB, :VOCAB]


def sample(name, steps, fixed=None, count=COUNT):
    process, matrix_at = PROCESSES[name]
    prompt = np.full((count, LENGTH), fixed[1] if fixed else 0, np.int32)
    held = np.broadcast_to(np.arange(LENGTH) == (fixed[0] if fixed else -1), prompt.shape)
    run = functools.partial(
        SAMPLERS["ancestral"].sample,
        knowing(matrix_at, steps),
        process=process,
        spec=SampleSpec(steps),
    )
    tokens, _ = jax.jit(run)({}, step_key(0, 0), jnp.asarray(prompt), jnp.asarray(held))
    return np.asarray(tokens)


def assert_law(tokens, law):
    assert tokens.max() < VOCAB
    counts = np.bincount(tokens @ [VOCAB, 1], minlength=VOCAB**LENGTH)
    expected = len(tokens) * law.reshape(-1)
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-6, df=len(counts) - 1)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", PROCESSES)
def test_samples_follow_the_law_of_the_chain(name, steps):
    assert_law(sample(name, steps), law_of_chain(PROCESSES[name][1], steps))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_chi_square_tells_the_chain_from_the_joint(name):
    with pytest.raises(AssertionError):
        assert_law(sample(name, 5), JOINT)


@pytest.mark.parametrize(("name", "rate"), [("uniform", 2), ("hybrid", 2**0.5)])
def test_law_of_the_chain_tends_to_the_joint(name, rate):
    """As one over the steps; for hybrid noise, whose redraws come as sqrt(t), over their root."""
    far = [abs(law_of_chain(PROCESSES[name][1], n) - JOINT).sum() / 2 for n in (1, 8, 64, 128)]
    assert far[0] > 2 * far[1] > 4 * far[2]
    assert far[2] / far[3] == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("name", PROCESSES)
def test_fixed_positions_stay_and_the_rest_follows_given_them(name):
    tokens = sample(name, 4, fixed=(1, 2))
    assert (tokens[:, 1] == 2).all()
    assert_law(tokens, law_of_chain(PROCESSES[name][1], 4, fixed=(1, 2)))
