"""Every objective on networks small enough to enumerate: the table behind test_means.py.

The exact means are numpy's, or those of the loss at given corruptions, which attained.py holds
against the likelihood.
"""

import functools
import itertools

import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives import gidd, udlm
from tests import chains, masking
from tests.enumerable import random_joint
from tests.objectives import blocks, powers, score_entropy, steps
from tests.objectives.cases import PAD, Case, in_noise, seeing
from tests.objectives.enumeration import VOCAB, corruptions, even, means
from tests.plug_in import hybrid_matrix, time_nodes, uniform_matrix
from tests.plug_in import wrong_table as wrong_at_all_times
from tests.visible import wrong_table

ELSEWHERE = {
    "ar": "draws nothing; test_ar.py",
    "mlm_pseudo": "enumerated with its draws; test_mlm.py",
}

# masked diffusion: three tokens, four positions

WRONG = wrong_table(VOCAB, 4)
LOG_P = masking.answers(WRONG)


def masked(sigma):
    """The chance of a mask, by the sigma_bar that the network is told."""
    return -np.expm1(-sigma)


def process(schedule, **options):
    """Makes a masking process."""
    return lambda: Absorbing(SCHEDULES[schedule].make(**options), VOCAB)


def at_ratios(ratios, weight):
    """sum_T weight E masked cross entropy at these mask ratios, float[T] both, for each x0."""
    ce = masking.cross_entropies(LOG_P).sum(-1)
    return weight @ (masking.even_mask_law(ratios) * ce).sum(-1)


def between(low, high):
    """The integral over mask ratios m of E masked cross entropy / m: RADD's, for any schedule."""
    m, weight = even(low, high)
    return at_ratios(m, (high - low) * weight / m)


def in_time(schedule, low=1e-3):
    """Exact means of t ~ U(low, 1)."""
    m = masking.ONE_MINUS_ALPHA[schedule]
    t, weight = even(low, 1, 40)
    return {"loss": between(m(low), m(1)) / (1 - low), "masked": weight @ m(t)}


def by_importance(schedule):
    """Those of a mask ratio that is even in its logarithm, from that at t = 1e-3 to that at 1."""
    low, high = map(masking.ONE_MINUS_ALPHA[schedule], (1e-3, 1))
    return in_time(schedule) | {"masked": (high - low) / np.log(high / low)}


def in_steps(schedule, count=5):
    """Those of t = 1/T .. 1."""
    m = masking.ONE_MINUS_ALPHA[schedule](np.arange(count + 1) / count)
    return {"loss": at_ratios(m[1:], np.diff(m) / m[1:]), "masked": m[1:].mean()}


def with_constants(exact, schedule):
    """MD4's: what eps leaves at both ends is added."""
    m = masking.ONE_MINUS_ALPHA[schedule]
    return exact | {"loss": exact["loss"] + 4 * (m(0) + 1 - m(1)) * np.log(VOCAB)}


def genmd4():
    """Those of GenMD4."""
    return {
        "loss": powers.over_times(lambda t: powers.bound_at(LOG_P, powers.W, t)),
        "masked": powers.over_times(lambda t: powers.masked_chance(powers.W, t).mean(-1)),
        "power_min": powers.W.min(),
        "power_max": powers.W.max(),
    }


def masking_case(objective, schedule, exact, **row):
    """A row of masked diffusion."""
    return Case(objective, process(schedule), WRONG[None], (0, 1, 2, 2), exact, **row)


def radd_case(name, exact):
    """A row of a network that is told no time."""
    return masking_case(name, "log_linear", exact)


MASKING = {
    "radd_t_dse": radd_case("radd_t_dse", lambda: in_time("log_linear")),
    "radd_t_dce": radd_case("radd_t_dce", lambda: in_time("log_linear")),
    "radd_lambda_dce": radd_case(
        "radd_lambda_dce", lambda: {"loss": between(0, 1), "masked": 1 / 2}
    ),
    "radd_ao": radd_case("radd_ao", lambda: {"loss": between(0, 1), "masked": 5 / 8}),
    "mdlm": masking_case("mdlm", "log_linear", lambda: in_time("log_linear"), altered=masked),
    "mdlm in steps": masking_case(
        "mdlm",
        "mdlm_cosine",
        lambda: in_steps("mdlm_cosine"),
        options={"steps": 5},
        altered=masked,
    ),
    "mdlm by importance": masking_case(
        "mdlm",
        "geometric",
        lambda: by_importance("geometric"),
        options={"importance": True},
        altered=masked,
    ),
    "md4": masking_case(
        "md4", "cosine", lambda: with_constants(in_time("cosine", 0), "cosine"), altered=masked
    ),
    "md4 in steps": masking_case(
        "md4",
        "linear",
        lambda: with_constants(in_steps("linear"), "linear"),
        options={"steps": 5},
        altered=masked,
    ),
    "genmd4": masking_case("genmd4", "linear", genmd4, params=powers.learnt(powers.W), looped=True),
}


def blocks_case(size, clip=(0.0, 1.0)):
    """A row of block diffusion; draws of t begin at 1e-3."""
    x0, (low, high) = (2, 1, 0), clip
    mean = functools.partial(blocks.bound, WRONG, np.array([*x0, PAD]), size)

    def exact():
        loss, bound = mean(max(low, 1e-3), high), mean(1e-3)
        masked = (max(low, 1e-3) + high) / 2
        return {"loss": loss, "bound": bound, "masked": masked}

    options = {"block_size": size} | (
        {"clip_low": low, "clip_high": high} if clip != (0, 1) else {}
    )
    gap = 0.0 if clip == (0, 1) else None
    return Case(
        "bd3lm", lambda: blocks.PROCESS, WRONG, x0, exact, gap, apply=seeing, options=options
    )


BLOCKS = {f"bd3lm, blocks of {size}": blocks_case(size) for size in (1, 2, 4)} | {
    "bd3lm, clipped": blocks_case(2, clip=(0.4, 0.9))
}


def bert():
    """The mean over what can become of three tokens: left, masked, kept or redrawn as 0, 1, 2."""
    x0 = np.array(BERT.x0)
    fates = np.array(list(itertools.product(range(6), repeat=3)))
    chance = np.array([0.85, 0.12, 0.015, 0.005, 0.005, 0.005])[fates].prod(1)
    xt = np.where(fates == 1, VOCAB, np.where(fates >= 3, fates - 3, x0))
    log_p = BERT.says[0][xt @ [[16], [4], [1]], np.arange(3), x0]
    return {"loss": -chance @ (log_p * (fates > 0)).sum(1) / 0.15, "selected": 0.15}


BERT = Case("mlm", process("log_linear"), wrong_table(VOCAB, 3)[None], (2, 0, 1), lambda: bert())

# redrawn tokens: two positions

PAIR = random_joint(VOCAB, 2, seed=3)
EPS, P_UNIFORM = 1e-3, 0.2
UNIFORM = Uniform(SCHEDULES["log_linear"].make(eps=EPS), VOCAB)
LAST = uniform_matrix(1 - EPS, VOCAB)
REDRAWN = wrong_at_all_times(VOCAB, 2, VOCAB)
HALF_MASKED = wrong_at_all_times(VOCAB + 1, 2, VOCAB)


def redrawn(low=0.0):
    """Every x_t of t ~ U(low, 1) under uniform noise."""
    t, weight = time_nodes()
    nodes = low + (1 - low) * t, weight
    return corruptions(lambda t: uniform_matrix((1 - EPS) * t, VOCAB), nodes, 2)


def hybrid(p_uniform):
    """The process; no alpha is left at t = 1."""
    return Hybrid(SCHEDULES["log_linear"].make(eps=0.0), VOCAB, p_uniform)


def hybrid_matrix_at(p_uniform):
    """tau -> q(x_t | x_0)."""
    return lambda tau: hybrid_matrix(tau, VOCAB, p_uniform)


def udlm_exact():
    """Exact means of UDLM."""
    every = redrawn(low=1e-3)
    loss = means(udlm.udlm_at, UNIFORM, every, np.log(REDRAWN)[None])
    return {"loss": loss, "noised": every.changed()}


DYNAMIC = functools.partial(gidd.gidd_at, weighting="dynamic")


def gidd_exact(loss_at):
    """Exact means of GIDD, whose t = sin(pi u / 2)^2 are weighted but in the metric."""
    every = corruptions(hybrid_matrix_at(P_UNIFORM), time_nodes(), 2)
    loss, bound = (
        means(loss_at, hybrid(P_UNIFORM), every, np.log(HALF_MASKED)[None], field)
        for field in ("loss", "bound")
    )
    u, weight = even(0, 1, 40)
    seen = corruptions(hybrid_matrix_at(P_UNIFORM), (np.sin(np.pi / 2 * u) ** 2, weight), 2)
    return {"loss": loss, "bound": bound, "noised": seen.changed()}


def gidd_case(weighting, loss_at):
    """A row of GIDD."""
    return Case(
        "gidd",
        lambda: hybrid(P_UNIFORM),
        np.log(HALF_MASKED)[None],
        (1, 2),
        lambda: gidd_exact(loss_at),
        gap=None,
        options={"weighting": weighting},
    )


REDRAWS = {
    "udlm": Case(
        "udlm",
        lambda: UNIFORM,
        np.log(REDRAWN)[None],
        (1, 2),
        udlm_exact,
        gap=2 * (LAST[0] * np.log(LAST[0] * VOCAB)).sum(),
        altered=lambda sigma: masked(sigma) * (1 - 1 / VOCAB),
    ),
    "gidd, elbo": gidd_case("elbo", gidd.gidd_at),
    "gidd, dynamic": gidd_case("dynamic", DYNAMIC),
}

# scores: three positions

SCORE_EPS = 0.2
LOUD = np.random.default_rng(5).normal(size=((VOCAB + 1) ** 3, 3, VOCAB))
MOVES = {"absorb": 1.0, "uniform": 1 - 1 / VOCAB}  # the chance that noise changes a token


def sedd_case(kind):
    """A row of SEDD with a network that hears the noise."""
    says = LOUD[: (VOCAB + (kind == "absorb")) ** 3]
    last = score_entropy.MATRIX[kind](1 - SCORE_EPS)[0]
    gap = 0.0 if kind == "absorb" else 3 * (last * np.log(last * VOCAB)).sum()

    def exact():
        every = score_entropy.everything(kind, SCORE_EPS, low=1e-3)
        loudness = np.tanh(-np.log(1 - (1 - SCORE_EPS) * every.levels))
        loss = sedd_means(kind, every, loudness[:, None, None, None] * says)
        return {"loss": loss, {"absorb": "masked", "uniform": "noised"}[kind]: every.changed()}

    return Case(
        f"sedd_{kind}",
        lambda: score_entropy.make(kind, eps=SCORE_EPS),
        says[None],
        (1, 2, 2),
        exact,
        gap,
        apply=in_noise,
        altered=lambda sigma: masked(sigma) * MOVES[kind],
    )


def sedd_means(kind, every, says):
    """Exact means of the loss."""
    made = score_entropy.make(kind, eps=SCORE_EPS)
    return means(score_entropy.LOSS_AT[kind], made, every, says)


SCORES = {f"sedd_{kind}": sedd_case(kind) for kind in score_entropy.KINDS}

# T steps: two positions


def in_chain(kind):
    """Makes a process of T steps."""
    return lambda: chains.make(kind, steps.STEPS, VOCAB)


def d3pm_exact(kind):
    """Exact means of D3PM's hybrid loss; its metric is the cross entropy of a token."""
    p = steps.wrong(kind)
    bound, ce = steps.bound_by_matrices(kind, p), steps.cross_entropy(kind, p)
    return {"loss": bound + 0.5 * ce, "bound": bound, "ce": ce / 2}


def rdm_exact(kind):
    """Exact means of RDM, which are the same for every way to draw."""
    every = steps.everything(kind)
    loss = every.mean(steps.rdm_losses(kind, "linear", 0.1))
    return {"loss": loss, "noised": every.changed()}


def chain_cases(kind):
    """The rows of a kind of D3PM."""
    row = in_chain(kind), np.log(steps.wrong(kind)), (1, 2)
    ce = functools.partial(steps.cross_entropy, kind, steps.wrong(kind))
    return {
        f"d3pm, {kind}": Case(
            "d3pm",
            *row,
            lambda: d3pm_exact(kind),
            gap=None,
            count=8_000,
            options={"ce_weight": 0.5},
        ),
        f"d3pm_ce, {kind}": Case("d3pm_ce", *row, lambda: {"loss": ce()}, count=8_000),
    }


def rdm_case(kind, q_sample):
    """A row of RDM."""
    return Case(
        {"absorbing": "rdm_absorb", "uniform": "rdm_multinomial"}[kind],
        in_chain(kind),
        steps.rdm_answers(kind),
        (2, 1),
        lambda: rdm_exact(kind),
        count=8_000,
        options={"q_sample": q_sample},
        looped=q_sample != "default",
    )


PAIRS = ("multi_step", "multi_sample", "coupled")
CHAINS = {
    **{name: case for kind in chains.NAMES for name, case in chain_cases(kind).items()},
    **{
        f"rdm, {kind}, {way}": rdm_case(kind, way)
        for kind in ("absorbing", "uniform")
        for way in ("default", *PAIRS)
    },
}
CASES = MASKING | BLOCKS | {"mlm": BERT} | REDRAWS | SCORES | CHAINS

# the row and the field whose draws spread more, and by how much at least
SURER = {
    f"rdm, {kind}, {way}": (f"rdm, {kind}, default", "loss", 0.95)
    for kind in ("absorbing", "uniform")
    for way in PAIRS
} | {"bd3lm, clipped": ("bd3lm, clipped", "bound", 0.8)}
