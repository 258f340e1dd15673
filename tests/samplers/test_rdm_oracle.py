"""RDM's cutoffs, routing decisions, steps and trajectories equal those its authors' code makes.

Theirs is replayed from its logits and uniforms. Where it selects more than k positions, because
scores tie or are close to 0, ours selects exactly k.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.route_denoise import denoise, rdm
from ddm_jax.samplers.routing import State, falling, lowest, noise_count, noise_rate, route
from ddm_jax.samplers.signature import SampleSpec

KINDS = ("absorbing", "multinomial", "reparam_multinomial")
SPECIALS = ("bos", "pad", "eos")


def strategies(arrays, pattern):
    """[(name, routing, noise scale, cutoff)] of those in an oracle's array names."""
    names = {k[len(pattern) :].split("_")[0] for k in arrays if k.startswith(pattern)}
    for name in sorted(n for n in names if n.count("-") == 2):
        routing, topk, cutoff = name.split("-")
        yield name, routing, 0.0 if topk == "det" else float(topk.removeprefix("sto")), cutoff


def cur_steps(total, steps):
    """The steps of `total` at which `steps` decoding steps begin, the longer strides first."""
    short, longer = divmod(total, steps)
    strides = [short + 1] * longer + [short] * (steps - longer)
    return total - np.concatenate([[0], np.cumsum(strides)])


def movable_of(tokens, config):
    return ~np.isin(tokens, [config["specials"][name] for name in SPECIALS])


def said(logits, kind, config, tokens=None):
    """The logits as each kind of the published process reads them: float32[B, L, V].

    The multinomial ones say that a special token is itself.
    """
    logits = np.array(logits)
    ids = [config["specials"][name] for name in SPECIALS]
    if kind == "absorbing":
        logits[..., config["specials"]["unk_mask"]] = -1e9
    if kind == "reparam_multinomial":
        logits[..., ids] = -30
    if kind != "absorbing" and tokens is not None:
        one_hot = np.where(np.arange(logits.shape[-1]) == tokens[..., None], 0.0, -69.0)
        logits = np.where(movable_of(tokens, config)[..., None], logits, one_hot)
    return jnp.asarray(logits, jnp.float32)


def readout(logits):
    vocab = logits.shape[-1]
    return Readout(logits, jnp.eye(vocab), jnp.zeros(vocab), vocab)


@functools.partial(jax.jit, static_argnames=("routing", "cutoff"))
def published_step(state, logits, movable, noise, u, step, steps, routing, noise_scale, cutoff):
    """(state after, chosen) with the functions under test; u are those of the Gumbel noise."""
    spec = SampleSpec(steps, temperature=0.0)
    keys = jax.random.split(step_key(0, 0), len(logits))
    tokens, scores = denoise(keys, state.tokens, movable, readout(logits), spec)
    # their epsilons
    gumbel = -jnp.log(-jnp.log(u + 1e-8) + 1e-8)
    ranked = scores + noise_scale * noise_rate(step, steps, cutoff) * gumbel
    k = noise_count(movable.sum(axis=1), step, steps, cutoff)
    chosen = lowest(ranked, k, movable)
    falls = falling(state, tokens, scores, chosen, routing)
    return route(state, tokens, scores, noise, chosen, falls), chosen, k, scores


def assert_same(state, arrays, name):
    np.testing.assert_array_equal(state.tokens, arrays[f"{name}_tokens"], err_msg=name)
    np.testing.assert_array_equal(state.noised, arrays[f"{name}_masks"], err_msg=name)
    np.testing.assert_allclose(
        state.scores, arrays[f"{name}_scores"], rtol=1e-4, atol=1e-4, err_msg=name
    )


def test_noise_counts_equal_oracle(oracle):
    """Except where the product is an integer: their float32 may fall below, ours does not."""
    arrays, _ = oracle("rdm", "cutoff")
    for name in (k for k in arrays if k.startswith(("linear_", "cosine_"))):
        cutoff, steps = name.split("_")[0], int(name.split("_")[1])
        step, count = np.arange(steps), np.arange(arrays[name].shape[1])
        at = functools.partial(noise_count, jnp.asarray(count), steps=steps, cutoff=cutoff)
        ours = jax.vmap(at)(step)
        x = (step + 1) / steps
        exact = np.multiply.outer(1 - x if cutoff == "linear" else np.cos(np.pi / 2 * x), count)
        whole = np.abs(exact - np.round(exact)) < 1e-6 * np.maximum(count, 1)
        np.testing.assert_array_equal(np.asarray(ours)[~whole], arrays[name][~whole], name)
        np.testing.assert_array_equal(np.asarray(ours)[whole], np.round(exact[whole]), name)
        assert (arrays[name][whole] <= np.round(exact[whole])).all()


@pytest.mark.parametrize("kind", ["normal", "near0", "tied0"])
def test_lowest_k_equal_oracle_and_are_exactly_k_where_theirs_are_more(oracle, kind):
    arrays, _ = oracle("rdm", "cutoff")
    scores, k = arrays[f"topk_{kind}_scores"], arrays["topk_cutoff_len"][:, 0]
    ours = np.asarray(lowest(jnp.asarray(scores), jnp.asarray(k), jnp.ones(scores.shape, bool)))
    np.testing.assert_array_equal(ours.sum(1), k)
    for name in (f"topk_{kind}_mask", f"topk_{kind}_mask_f64in"):
        theirs = arrays[name]
        assert (theirs | ~ours).all()  # ours are among theirs
        right = theirs.sum(1) == k
        np.testing.assert_array_equal(ours[right], theirs[right])
        if kind == "normal" and not name.endswith("f64in"):
            assert right.all()
        else:
            assert not right.all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_oracle(oracle, kind):
    arrays, record = oracle("rdm", f"step_{kind}")
    config = record["config"]
    movable = movable_of(arrays["tokens"], config)
    logits = said(arrays["logits"], kind, config, arrays["tokens"])
    state = State(*(jnp.asarray(arrays[k]) for k in ("tokens", "scores", "masks")))
    times = sorted(int(k[1 : k.index("_")]) for k in arrays if k.endswith("_cur_tokens"))
    compared = 0
    for t in times:
        tokens_said = np.where(movable, arrays[f"t{t}_cur_tokens"], arrays["tokens"])
        noise = arrays.get(f"t{t}_noise_tokens", config["specials"]["unk_mask"])
        noise = jnp.broadcast_to(jnp.asarray(noise), state.tokens.shape)
        for name, routing, noise_scale, cutoff in strategies(arrays, f"t{t}_"):
            u = arrays.get(f"t{t}_{name}_u_topk", np.full(movable.shape, 0.5))
            after, chosen, k, scores = published_step(
                state,
                logits,
                movable,
                noise,
                u,
                t,
                config["max_step"],
                routing,
                noise_scale,
                cutoff,
            )
            tag = f"t{t}_{name}"
            np.testing.assert_array_equal(k, arrays[f"{tag}_cutoff_len"][:, 0], tag)
            np.testing.assert_array_equal(chosen, arrays[f"{tag}_lowest_k"], tag)
            theirs = np.where(movable, arrays[f"t{t}_cur_scores"], scores)
            np.testing.assert_allclose(scores, theirs, rtol=1e-4, atol=1e-4)
            if noise_scale:
                rate = noise_rate(t, config["max_step"], cutoff)
                temp = arrays[f"{tag}_temp"]
                np.testing.assert_allclose(noise_scale * rate, temp, rtol=1e-4, atol=1e-5)
            assert_same(after, arrays, f"{tag}_out")
            compared += 1
        best = jnp.argmax(logits, -1)
        np.testing.assert_array_equal(np.where(movable, best, arrays["tokens"]), tokens_said)
    assert compared >= 3 * len(times)


@pytest.mark.parametrize("kind", ["absorbing", "reparam_multinomial"])
def test_default_steps_equal_oracle(oracle, kind):
    """Bernoulli routing with their chances: log u < log lambda, or u < stepsize / step."""
    arrays, record = oracle("rdm", f"step_{kind}")
    config = record["config"]
    steps = cur_steps(config["T"], config["max_step"])
    state = State(*(jnp.asarray(arrays[k]) for k in ("tokens", "scores", "masks")))
    movable = movable_of(arrays["tokens"], config)
    for t in (int(k[1 : k.index("_")]) for k in arrays if k.endswith("_cur_tokens")):
        if kind == "absorbing":
            chance = (steps[t] - steps[t + 1]) / steps[t]
            stays = arrays[f"t{t}_default_u"] >= chance
            noise = config["specials"]["unk_mask"]
        else:
            chance = np.exp(arrays[f"t{t}_default_log_lambda2"])[:, None]
            stays = np.log(arrays[f"t{t}_default_u_bern"]) >= np.log(chance)
            gumbel = -np.log(-np.log(arrays[f"t{t}_default_u_noise"] + 1e-10) + 1e-10)
            noise = (gumbel + arrays[f"t{t}_default_log_q_noise"]).argmax(-1)
        noise = jnp.broadcast_to(jnp.asarray(noise), movable.shape)
        tokens, scores = arrays[f"t{t}_cur_tokens"], arrays[f"t{t}_cur_scores"]
        falls = falling(state, tokens, scores, jnp.asarray(stays), "default")
        after = route(state, tokens, scores, noise, stays, falls)
        np.testing.assert_array_equal(after.tokens, arrays[f"t{t}_default_out_tokens"])
        if kind != "absorbing":  # there they hand back other scores, and the masks of before
            assert_same(after, arrays, f"t{t}_default_out")


def test_vanilla_chances_equal_oracle(oracle):
    """(alpha_s - alpha_t) / (1 - alpha_t), which under alpha = 1 - t is stepsize / step."""
    _, record = oracle("rdm", "step_absorbing")
    steps = cur_steps(record["config"]["T"], record["config"]["max_step"])
    process = Absorbing(SCHEDULES["log_linear"].make(eps=0.0), 0)
    s, t = steps[1:] / steps[0], steps[:-1] / steps[0]
    np.testing.assert_allclose(process.reveal(s, t), -np.diff(steps) / steps[:-1], rtol=1e-5)


def test_scores_of_drawn_tokens_are_untempered_as_in_oracle(oracle):
    arrays, record = oracle("rdm", "step_absorbing")
    logits = said(arrays["logits"], "absorbing", record["config"])
    keys = jax.random.split(step_key(0, 0), len(logits))
    free = jnp.ones(logits.shape[:2], bool)
    spec = SampleSpec(1, temperature=0.5)
    tokens, scores = denoise(keys, jnp.asarray(arrays["tokens"]), free, readout(logits), spec)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    want = np.take_along_axis(log_p, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)
    theirs = np.take_along_axis(log_p, arrays["sampled_tokens"][..., None], -1)[..., 0]
    np.testing.assert_allclose(theirs, arrays["sampled_scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["absorbing", "reparam_multinomial"])
def test_trajectories_equal_oracle(oracle, kind):
    """Every step of the toy denoiser, each from OUR state of the step before."""
    arrays, record = oracle("rdm", "trajectories")
    config = record["config"]
    steps = cur_steps(config["T"], config["max_step"])
    offset = 0 if kind == "absorbing" else 1  # the multinomial kinds count from 0
    ran = 0
    for name, routing, noise_scale, cutoff in strategies(arrays, f"{kind}_"):
        tag = f"{kind}_{name}"
        start = arrays[f"{tag}_tokens"][0]
        movable = movable_of(start, config)
        state = State(jnp.asarray(start), jnp.zeros(start.shape), jnp.asarray(movable))
        same = kind + "_uncond-det-linear"
        for i in range(config["max_step"]):
            tokens = np.asarray(state.tokens)
            movable = movable_of(tokens, config)  # theirs is read from the tokens of each step
            t = steps[i] - offset
            logits = arrays["emb"][tokens] + arrays["pos"] + t / config["T"] * arrays["tvec"]
            logits = said(logits, kind, config, tokens)
            noise = np.full(tokens.shape, config["specials"]["unk_mask"])
            if kind != "absorbing":
                u_noise = arrays.get(f"{tag}_draw0", arrays.get(f"{same}_draw0"))[i]
                noise = noise_tokens(oracle, config, steps, i, tokens, u_noise)
            u = arrays[f"{tag}_draw{offset}"][i] if noise_scale else np.full(tokens.shape, 0.5)
            state, *_ = published_step(
                state,
                logits,
                movable,
                jnp.asarray(noise),
                u,
                i,
                config["max_step"],
                routing,
                noise_scale,
                cutoff,
            )
            step_arrays = {
                f"{tag}_tokens": arrays[f"{tag}_tokens"][i + 1],
                f"{tag}_scores": arrays[f"{tag}_scores"][i],
                f"{tag}_masks": arrays[f"{tag}_masks"][i],
            }
            assert_same(state, step_arrays, tag)
        ran += 1
    assert ran >= 3


def test_default_trajectory_equals_oracle(oracle):
    """Masks revealed with chance stepsize / step, decided by the recorded uniforms."""
    arrays, record = oracle("rdm", "trajectories")
    config = record["config"]
    steps = cur_steps(config["T"], config["max_step"])
    tokens = arrays["absorbing_default_tokens"]
    movable = movable_of(tokens[0], config)
    state = State(jnp.asarray(tokens[0]), jnp.zeros(movable.shape), jnp.asarray(movable))
    noise = jnp.full(movable.shape, config["specials"]["unk_mask"])
    for i in range(config["max_step"]):
        logits = arrays["emb"][np.asarray(state.tokens)] + arrays["pos"]
        logits = said(logits + steps[i] / config["T"] * arrays["tvec"], "absorbing", config)
        best, log_p = jnp.argmax(logits, -1), jax.nn.log_softmax(logits).max(-1)
        stays = jnp.asarray(arrays["absorbing_default_draw0"][i] >= 1 - steps[i + 1] / steps[i])
        state = route(
            state, best, log_p, noise, stays, falling(state, best, log_p, stays, "default")
        )
        np.testing.assert_array_equal(state.tokens, tokens[i + 1])


def noise_tokens(oracle, config, steps, i, tokens, u):
    """argmax of Gumbel noise on log q_noise(. | x_t): x_t kept, or noise without special tokens."""
    arrays, _ = oracle("rdm", "schedules")
    alpha = np.append(1, np.exp(arrays[f"T{config['T']}_cosine_log_cumprod_alpha"]))
    kept = alpha[steps[i]] / alpha[steps[i + 1]]
    ordinary = movable_of(np.arange(config["vocab"]), config)
    q = (1 - kept) * ordinary / ordinary.sum()
    q = q + kept * (tokens[..., None] == np.arange(config["vocab"]))
    gumbel = -np.log(-np.log(u + 1e-10) + 1e-10)
    return (gumbel + np.log(q + 1e-30)).argmax(-1)


@pytest.mark.slow
def test_whole_sampler_equals_oracle(oracle):
    """Sequences in which the toy denoiser makes no special token: theirs then stop moving."""
    arrays, record = oracle("rdm", "trajectories")
    config = record["config"]
    total, number = config["T"], config["max_step"]
    process = Absorbing(SCHEDULES["log_linear"].make(), config["specials"]["unk_mask"])
    t = jnp.asarray(cur_steps(total, number) / total)
    emb, pos, tvec = (jnp.asarray(arrays[k]) for k in ("emb", "pos", "tvec"))

    def apply(params, tokens, sigma):
        step = jnp.round((1 - process.schedule.time(sigma)) * number).astype(int)
        logits = emb[tokens] + pos + t[step][:, None, None] * tvec
        return readout(logits.at[..., process.mask_id].set(-1e9))

    ran = 0
    for name, routing, noise_scale, cutoff in strategies(arrays, "absorbing_"):
        tokens = arrays[f"absorbing_{name}_tokens"]
        movable = movable_of(tokens, config)
        ordinary = (movable == movable[0]).all((0, 2))
        if noise_scale:
            continue
        run = functools.partial(rdm, apply, {}, routing=routing, cutoff=cutoff, process=process)
        spec = SampleSpec(number, temperature=0.0)
        start = jnp.asarray(tokens[0])
        got, stats = jax.jit(run)(step_key(0, 0), start, jnp.asarray(~movable[0]), spec=spec)
        np.testing.assert_array_equal(np.asarray(got)[ordinary], tokens[-1][ordinary], name)
        np.testing.assert_array_equal(stats.nfe, number)
        ran += ordinary.sum()
    assert ran
