"""The order of sampling in a given order; the law of its samples is in test_laws.py."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.samplers.ordered import ordered
from ddm_jax.samplers.signature import SampleSpec

VOCAB, LENGTH = 3, 3
ORDERS = {"left": [0, 1, 2], "right": [2, 1, 0], "2,0,1": [2, 0, 1]}


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
