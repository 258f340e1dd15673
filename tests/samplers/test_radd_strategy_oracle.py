"""The published top-p, top-k and ordered sampling, replayed from the random numbers it drew.

A race there is argmax p / -log(u), ours argmin -log(1 - u) / p: the same race from 1 - u.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.categorical import race
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.samplers.draw import filtered
from ddm_jax.samplers.ordered import ordered
from ddm_jax.samplers.signature import SampleSpec
from tests.models.published import params_from_state_dict

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def test_top_p_equals_oracle(oracle):
    """Over all columns of the logits, that of the mask too, as published."""
    arrays, _ = oracle("radd", "sampler_strategy")
    spec = SampleSpec(1, top_p=jnp.float32(arrays["top_p_para"]))
    kept = filtered(jnp.asarray(arrays["top_p_logits_rows"]), spec)
    want = arrays["top_p_probs_rows"]
    np.testing.assert_array_equal(kept > -jnp.inf, want > 0)
    np.testing.assert_allclose(jax.nn.softmax(kept, axis=-1), want, **TOLERANCE)
    tokens = race(1 - arrays["top_p_u_rows"], kept)
    np.testing.assert_array_equal(tokens, arrays["top_p_tokens_rows"])


def test_top_k_equals_oracle(oracle):
    """Its random numbers belong to the k best tokens, the best first."""
    arrays, _ = oracle("radd", "sampler_strategy")
    k, want = int(arrays["top_k_para"]), arrays["top_k_probs_rows"]
    kept = np.asarray(filtered(jnp.asarray(arrays["top_k_logits_rows"]), SampleSpec(1, top_k=k)))
    np.testing.assert_array_equal((kept > -np.inf).sum(-1), want.shape[-1])
    best = np.argsort(-kept, axis=-1)[:, :k]
    ours = jax.nn.softmax(np.take_along_axis(kept, best, -1), axis=-1)
    np.testing.assert_allclose(ours, want, **TOLERANCE)
    winner = np.asarray(race(1 - arrays["top_k_u_rows"], jnp.log(ours)))
    tokens = np.take_along_axis(best, winner[:, None], -1)[:, 0]
    np.testing.assert_array_equal(tokens, arrays["top_k_tokens_rows"])


@pytest.mark.parametrize("strategy", ["top_p", "top_k"])
def test_rows_of_the_oracle_cover_its_sample(oracle, strategy):
    """What the tests above replay is what the published sampler wrote, position by position."""
    arrays, meta = oracle("radd", "sampler_strategy")
    updated = arrays[f"{strategy}_update_indices"]
    number = np.cumsum(updated.reshape(-1)).reshape(updated.shape) - 1
    x = arrays[f"{strategy}_x_before"]
    written = np.where(updated, arrays[f"{strategy}_tokens_rows"][number], x)
    np.testing.assert_array_equal(written[:-1], x[1:])
    np.testing.assert_array_equal(written[-1], arrays[f"{strategy}_x_final"])
    assert (x[0] == meta["config"]["tokens"]).all()


@pytest.mark.slow
def test_ordered_equals_oracle(oracle, monkeypatch):
    """The whole sampler on the published weights, only its random numbers replaced."""
    weights, _ = oracle("radd", "model_weights")
    arrays, meta = oracle("radd", "sampler_strategy")
    model, tokens = meta["config"]["model"], meta["config"]["tokens"]
    order, u, x_final = (arrays[f"ordered_{name}"] for name in ("order", "u", "x_final"))
    count, length = x_final.shape
    step_of = np.argsort(order)
    u_of = jnp.asarray(u[step_of])  # [position, sequence, token]
    said = {}

    def replay(at, logits, spec):
        """In place of draw.draw, given positions in place of keys."""
        del spec
        at = jnp.minimum(at, length - 1)  # beyond are draws that are thrown away
        p = jax.nn.softmax(logits, axis=-1)
        jax.debug.callback(lambda at, p: said.update({int(at[0, 0]): np.asarray(p[:, 0])}), at, p)
        return race(1 - u_of[at, jnp.arange(count)[:, None]], logits)

    draw = importlib.import_module("ddm_jax.samplers.draw")
    monkeypatch.setattr(draw, "position_keys", lambda keys, at: at)
    monkeypatch.setattr(draw, "draw", replay)
    config = ModelConfig(
        width=model["hidden_size"],
        depth=model["n_blocks"],
        heads=model["n_heads"],
        compute_dtype="float32",
    )
    network = make_network(config, tokens)
    params = jax.tree.map(
        jnp.asarray, params_from_state_dict(weights, config.heads, padded_vocab(tokens))
    )
    process = Absorbing(SCHEDULES["log_linear"].make(), tokens)
    empty = jnp.zeros((count, length), jnp.int32)
    given = ",".join(map(str, order))
    ours, stats = ordered(
        network.apply, params, step_key(0, 0), empty, empty > 0, process, SampleSpec(1), given
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(ours, x_final)
    np.testing.assert_array_equal(ours[:, order].T, arrays["ordered_tokens"])
    np.testing.assert_array_equal(stats.nfe, np.full(count, length))
    want = arrays["ordered_probs"][step_of]
    np.testing.assert_allclose([said[i] for i in range(length)], want, **TOLERANCE)
