"""A run that begins with the weights of another one: config.train.init_from."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from ddm_jax.config import Config
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.checkpoint import folder_of, restore_weights
from ddm_jax.runs.record import read_record
from ddm_jax.training.state import TrainState


def started_from(
    state: TrainState, config: Config, tokenizer: Tokenizer, layout: Layout
) -> TrainState:
    """A fresh state with the averaged weights of the run in config.train.init_from.

    They are its weights and its average alike; steps and the optimizer start anew. What that run
    was trained for does not matter, if all its parameters have the same names and shapes.

    Raises:
      UserError: there is no such run, it reads other tokens, or its network has other parameters.
    """
    where = config.train.init_from
    workdir = Path(where).expanduser()
    given, other = read_record(workdir)
    if (other.kind, other.model, other.eos_id) != (
        tokenizer.kind,
        tokenizer.model,
        tokenizer.eos_id,
    ):
        raise UserError(
            f"config.train.init_from={where} was trained with the tokenizer {other.name}, not "
            f"{tokenizer.name}: set config.data.tokenizer to that."
        )
    _, _, network = make_parts(given, other.vocab_size)
    theirs = _shapes(jax.eval_shape(network.init, jax.random.key(0)))
    ours = _shapes(state.params)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"config.train.init_from={where} has {name} of shape {theirs.get(name)}, the "
                f"network of this config {ours.get(name)}: make config.model like its config.json."
            )
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    _, weights = restore_weights(folder_of(workdir, given.train), abstract, layout)
    return dataclasses.replace(
        state,
        params=_laid_like(weights, state.params),
        ema=_laid_like(jax.tree.map(jnp.copy, weights), state.ema),
    )


def _laid_like(weights: dict, params: dict) -> dict:
    return jax.tree.map(lambda w, x: jax.device_put(w, x.sharding), weights, params)


def _shapes(params: dict) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(key.key) for key in path): tuple(x.shape) for path, x in leaves}
