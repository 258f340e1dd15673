"""Opens the judge that --judge names: smollm2, an autoregressive run, or a folder with a GPT-2."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.diffusion.attention_masks import shifted
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.gpt2 import is_hugging_face, open_gpt2
from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.judges.smollm2 import open_smollm2
from ddm_jax.models.network import Params
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import Run, open_run

HELP = "smollm2, the folder of a run with config.objective.name='ar', or of a GPT-2"


def open_judge(spec: str) -> Judge:
    """The judge that --judge names, on one device.

    Raises:
      UserError: no judge has that name, or it cannot be read.
    """
    if spec == "smollm2":
        return open_smollm2()
    folder = Path(spec).expanduser()
    if not spec or not folder.is_dir():
        raise UserError(f"--judge={spec} is not a judge: give {HELP}.")
    if is_hugging_face(folder):
        return open_gpt2(folder)
    return judge_of(open_run(folder, layout=dp(jax.local_devices()[:1])), str(folder))


def judge_of(run: Run, name: str) -> Judge:
    """An autoregressive run as a judge. It has a token that starts a text: all tokens are judged.

    Raises:
      UserError: the run is not autoregressive.
    """
    if run.config.objective.name != "ar":
        raise UserError(
            f"--judge={name} was trained with config.objective.name={run.config.objective.name!r}, "
            "which gives no exact probabilities: train one with configs/ar_tiny.py."
        )

    @jax.jit
    def nats(params: Params, tokens: Array) -> Array:
        given = shifted(tokens, run.network.vocab_size)
        logit, lse = run.network.apply(params, given, attend="causal").target(tokens)
        return lse - logit

    return Judge(
        name=f"autoregressive run {name}, step {run.step}",
        encode=run.tokenizer.encode,
        nats=lambda tokens: nats(run.params, jnp.asarray(np.asarray(tokens))),
        window=run.config.data.length,
        given=0,
        fingerprint=run.tokenizer.fingerprint,
    )
