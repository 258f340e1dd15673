"""How noisy each estimator of the likelihood is, at the same number of network evaluations.

    python -m benchmarks.estimators --workdir=work/radd_tiny [--sequences=64] [--json]

Each sequence is estimated --repeats times from --draws corruptions each, whose noise levels are
either stratified or independent. The result is the variance of such an estimate around the
sequence's own mean, relative to that of radd_t_dce with independent times, which is how RADD's
published evaluation draws them: a ratio_to_independent_t_dce above 1 means less noise, and is the
factor by which the reference would need more evaluations.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddm_jax import cli
from ddm_jax.data.open import open_or_prepare
from ddm_jax.evaluation.likelihood import estimators
from ddm_jax.evaluation.likelihood.monte_carlo import make_groups, mean
from ddm_jax.objectives.signature import BOUND
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import open_run

REFERENCE = ("radd_t_dce", False)

_WORKDIR = flags.DEFINE_string("workdir", "work/radd_tiny", "A run of a RADD objective.")
_SEQUENCES = flags.DEFINE_integer("sequences", 64, "Held-out blocks.")
_REPEATS = flags.DEFINE_integer("repeats", 16, "Estimates of each sequence.")
_DRAWS = flags.DEFINE_list("draws", ["1", "4", "16"], "Network evaluations per estimate.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints one row for each estimator and way of drawing, for each number of draws."""
    del argv
    run = open_run(_WORKDIR.value, layout=dp(jax.devices()[:1]))
    tokens, valid = open_or_prepare(run.config.data).records("test").read(range(_SEQUENCES.value))
    batch, index = {"tokens": tokens, "valid": valid}, jnp.arange(len(tokens))
    names = [n for n in estimators.fitting(run.config) if n != "sedd_absorb"]
    result = {}
    print(
        f"{'estimator':16} {'levels':12} {'draws':>5} {'nll':>8} {'+-':>7} {'sd':>8} {'ratio':>7}"
    )
    for draws in map(int, _DRAWS.value):
        rows = {}
        for name in names:
            chosen = estimators.choose(run.config, name)
            if chosen.estimates != BOUND:
                continue
            for stratified in (True, False) if draws > 1 else (False,):
                grouped = make_groups(
                    run.network,
                    chosen.loss,
                    run.process,
                    draws * _REPEATS.value,
                    _REPEATS.value,
                    stratified,
                )
                nats, counts = map(np.asarray, jax.jit(grouped)(run.params, batch, index, 0))
                found = mean(nats, counts)
                # standard deviation for one sequence, per token
                deviation = math.sqrt((nats / counts[:, None]).var(axis=1, ddof=1).mean())
                rows[name, stratified] = found.nll, found.mc_stderr, deviation
        for (name, stratified), (nll, error, deviation) in rows.items():
            ratio = (rows[REFERENCE][2] / deviation) ** 2
            levels = "stratified" if stratified else "independent"
            result[f"{name} {levels} {draws}"] = {
                "nll": nll,
                "mc_stderr": error,
                "sd_of_sequence": deviation,
                "ratio_to_independent_t_dce": ratio,
            }
            print(
                f"{name:16} {levels:12} {draws:5} {nll:8.4f} {error:7.4f} {deviation:8.4f} "
                f"{ratio:7.2f}",
                flush=True,
            )
    if _JSON.value:
        print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
