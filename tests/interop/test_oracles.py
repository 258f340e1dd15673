"""Converted weights are the published network: forward, a loss and a sampling step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.categorical import race
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.objectives import bd3lm, udlm
from tests.interop.oracle_files import WEIGHTS, converted
from tests.models.published import params_from_state_dict

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_work_directory_has_the_weights_of_every_oracle_test(oracle, name, tmp_path):
    """Bitwise those that all oracle tests of losses, gradients and samplers start from."""
    weights, _ = oracle(*WEIGHTS[name])
    run = converted(oracle, name, tmp_path)
    pad = padded_vocab(run.tokenizer.vocab_size)
    want = params_from_state_dict(weights, run.config.model.heads, pad)
    jax.tree.map(np.testing.assert_array_equal, run.params, want)


def test_sedd_scores_equal_oracle(oracle, tmp_path):
    arrays, meta = oracle("sedd", "model_absorb_forward")
    run = converted(oracle, "sedd", tmp_path)
    x, sigma, vocab = arrays["x"], arrays["sigma_a"], meta["config"]["tokens"]
    score = np.array(_logits(run, x, sigma))
    assert run.config.objective.scale_by_sigma == meta["config"]["model"]["scale_by_sigma"]
    score -= (np.log(np.expm1(sigma)) + np.log(vocab))[:, None, None]
    is_token = x < vocab
    score[(*np.nonzero(is_token), x[is_token])] = 0
    np.testing.assert_allclose(score, arrays["log_score_a"][..., :vocab], **TOLERANCE)


def test_radd_logits_equal_oracle(oracle, tmp_path):
    arrays, meta = oracle("radd", "model_forward")
    run = converted(oracle, "radd", tmp_path)
    want = arrays["logits"][..., : meta["config"]["tokens"]]
    np.testing.assert_allclose(_logits(run, arrays["x"], None), want, **TOLERANCE)


def test_mdlm_logits_and_a_sampling_step_equal_oracle(oracle, tmp_path):
    run = converted(oracle, "mdlm", tmp_path)
    arrays, _ = oracle("mdlm", "forward")
    want = arrays["backbone_logits_sigma0"][..., :-1]
    np.testing.assert_allclose(_logits(run, arrays["x"], None), want, **TOLERANCE)

    arrays, _ = oracle("mdlm", "sampler_traj")
    steps = len(arrays["ddpm_x_before"])
    t, s = np.linspace(1, 1e-5, steps + 1)[:2]
    x, following = arrays["ddpm_x_before"][:2]
    law = softmax(np.asarray(_logits(run, x, None)), axis=-1)
    stay = np.full((*x.shape, 1), run.process.stay_masked(s, t))
    weights = np.append(np.asarray(run.process.reveal(s, t)) * law, stay, axis=-1)
    drawn = race(1 - arrays["ddpm_u"][0], jnp.float32(np.log(weights)))
    assert (x != following).any()
    np.testing.assert_array_equal(np.where(x == run.tokenizer.vocab_size, drawn, x), following)


def test_bd3lm_losses_equal_oracle(oracle, tmp_path):
    run = converted(oracle, "bd3lm", tmp_path)
    arrays, _ = oracle("bd3lms", "model_loss")
    x0, xt, t = (arrays[f"bs4_{name}"] for name in ("x0", "xt", "t"))
    xt = np.where(np.arange(xt.shape[1]) == 0, x0, xt)
    assert isinstance(run.process, Absorbing)
    size = run.config.objective.block_size
    want = arrays["bs4_loss"].sum(axis=1)
    np.testing.assert_allclose(_losses(run, bd3lm.bd3lm_at, x0, xt, t, size), want, rtol=1e-4)


def test_duo_losses_equal_oracle(oracle, tmp_path):
    run = converted(oracle, "duo", tmp_path)
    arrays, _ = oracle("duo", "losses")
    assert run.tokenizer.vocab_size == 33  # [PAD] is one of its states
    x0, xt, t = (arrays[f"mid_{name}"] for name in ("uniform_x0", "uniform_xt", "t"))
    want = arrays["mid_udlm_loglinear_model"].sum(axis=1)
    np.testing.assert_allclose(_losses(run, udlm.udlm_at, x0, xt, t), want, rtol=1e-3)


def _losses(run, losses_at, x0, xt, t, *options):
    batch = {"tokens": x0, "valid": np.ones(x0.shape, bool)}

    @jax.jit
    def losses(params, batch, xt, t):
        return losses_at(_full(run), params, batch, xt, t, run.process, *options).loss

    return losses(run.params, batch, xt, t)


def _full(run):
    """The network in float32, where the recipe has bfloat16."""
    config = dataclasses.replace(run.config.model, compute_dtype="float32")
    return make_network(config, run.tokenizer.vocab_size).apply


def _logits(run, x, sigma):
    apply = _full(run)
    return jax.jit(lambda *given: apply(*given).logits())(run.params, x, sigma)
