"""Sampling in a given order against the chain rule of a network that is wrong everywhere.

Such a network has another law in each order, the exact denoiser the joint distribution in all.
Chi-squares reject the right law once in 10^6.
"""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.samplers.ordered import ordered
from ddm_jax.samplers.signature import SampleSpec
from tests.chain_rule import law_of_order
from tests.enumerable import random_joint, table_network
from tests.laws import chi_square
from tests.visible import exact_table, wrong_table

VOCAB, LENGTH, COUNT = 3, 3, 36_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)
LOG_P = {"exact": exact_table(JOINT), "wrong": wrong_table(VOCAB, LENGTH)}
MASKS = [VOCAB] * LENGTH
ORDERS = {"left": [0, 1, 2], "right": [2, 1, 0], "2,0,1": [2, 0, 1]}


@functools.cache
def sampler(network, order):
    process = Absorbing(SCHEDULES["log_linear"].make(), VOCAB)
    apply = table_network(np.float32(LOG_P[network]))
    return jax.jit(
        functools.partial(ordered, apply, {}, process=process, spec=SampleSpec(1), order=order)
    )


def sample(order, prompt=None, fixed=None, network="wrong", seed=0):
    """(tokens, nfe)."""
    prompt = np.zeros((COUNT, LENGTH), np.int32) if prompt is None else prompt
    fixed = np.zeros(prompt.shape, bool) if fixed is None else fixed
    run = sampler(network, order)
    tokens, stats = run(step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    return np.asarray(tokens), np.asarray(stats.nfe)


def law_of(order, start=MASKS):
    """That of the wrong network; "random" is every order as often."""
    p = np.exp(LOG_P["wrong"])
    orders = itertools.permutations(range(LENGTH)) if order == "random" else [ORDERS[order]]
    return np.mean([law_of_order(p, list(o), start) for o in orders], axis=0)


@pytest.mark.parametrize("order", [*ORDERS, "random"])
def test_samples_follow_the_chain_rule_in_their_order(order):
    tokens, nfe = sample(order)
    np.testing.assert_array_equal(nfe, np.full(COUNT, LENGTH))
    statistic, limit = chi_square(tokens, law_of(order))
    assert statistic < limit
    for other in {*ORDERS, "random"} - {order}:
        statistic, limit = chi_square(tokens, law_of(other))
        assert statistic > limit


@pytest.mark.parametrize("order", ["right", "random"])
def test_the_exact_denoiser_samples_the_joint(order):
    empty = np.zeros((100_000, LENGTH), np.int32)
    statistic, limit = chi_square(sample(order, empty, network="exact")[0], JOINT.reshape(-1))
    assert statistic < limit


@pytest.mark.parametrize("order", ["2,0,1", "random"])
def test_fixed_positions_stay_and_are_passed_over(order):
    """Every token at every position at once; what the prompt says elsewhere is ignored."""
    position, given = (x.reshape(-1) for x in np.indices((LENGTH, VOCAB)))
    position, given = (np.tile(x, COUNT // 9) for x in (position, given))
    fixed = position[:, None] == np.arange(LENGTH)
    prompt = np.where(fixed, given[:, None], 1).astype(np.int32)
    tokens, nfe = sample(order, prompt, fixed)
    np.testing.assert_array_equal(nfe, np.full(len(prompt), LENGTH - 1))
    for i, token in itertools.product(range(LENGTH), range(VOCAB)):
        start = [token if j == i else VOCAB for j in range(LENGTH)]
        here = tokens[(position == i) & (given == token)]
        statistic, limit = chi_square(here, law_of(order, start))
        assert statistic < limit


def test_sequence_depends_on_the_key_and_its_number_alone():
    prompt = np.random.default_rng(0).integers(0, VOCAB, (COUNT, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    tokens, nfe = sample("random", prompt, fixed)
    np.testing.assert_array_equal(tokens[fixed], prompt[fixed])
    np.testing.assert_array_equal(nfe, (~fixed).sum(1))
    few, _ = sample("random", prompt[:5], fixed[:5])
    np.testing.assert_array_equal(few, tokens[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    np.testing.assert_array_equal(sample("random", others, fixed)[0][:5], tokens[:5])
    assert (sample("random", prompt, fixed, seed=1)[0] != tokens).any()


def ranks_of(order, monkeypatch):
    """When each position comes."""
    module = importlib.import_module("ddm_jax.samplers.ordered")
    monkeypatch.setattr(module, "walk", lambda evaluate, keys, start, step_of, *rest: step_of)
    empty = jnp.zeros((1, LENGTH), jnp.int32)
    process = Absorbing(SCHEDULES["log_linear"].make(), VOCAB)
    spec = SampleSpec(1)
    return ordered(None, {}, step_key(0, 0), empty, empty > 0, process, spec, order)[0].tolist()


def test_an_order_is_given_as_text_or_as_numbers(monkeypatch):
    for order in ("2,0,1", " 2, 0,1", [2, 0, 1], np.array([2, 0, 1]), jnp.array([2, 0, 1])):
        assert ranks_of(order, monkeypatch) == [1, 2, 0]
    for name, order in ORDERS.items():
        assert ranks_of(name, monkeypatch) == ranks_of(order, monkeypatch)


@pytest.mark.parametrize(
    "order", ["0,1", "0,1,1", "1,2,3", "", "up", "0,1,2.0", (0, 1), (2, 1, -1)]
)
def test_what_is_no_order_is_refused_in_one_sentence(order, monkeypatch):
    with pytest.raises(UserError, match=r"config\.sampler\.order='.*' .* 3 positions: .* 0 to 2"):
        ranks_of(order, monkeypatch)
