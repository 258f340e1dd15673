"""config.train.init_from: a run that starts from the weights of another one."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from ddm_jax.config import Config
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.models.network import Params
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.checkpoint import folder_of, restore_weights
from ddm_jax.runs.record import read_record
from ddm_jax.training.state import TrainState


def load_initial_weights(
    state: TrainState, config: Config, tokenizer: Tokenizer, layout: Layout
) -> TrainState:
    """A fresh state with the averaged weights of the run in config.train.init_from.

    They become both the weights and their average; steps and the optimizer start anew. The
    objective of that run does not matter, if all its parameters have the same names and shapes.

    Args:
      state: fresh, laid out on the devices.
      config: settled.
      tokenizer: of the new run's data.
      layout: of the state.

    Raises:
      UserError: there is no such run, it reads other tokens, or its network has other parameters.
    """
    where = config.train.init_from
    workdir = Path(where).expanduser()
    source_config, source_tokenizer = read_record(workdir)
    _check_tokenizer(where, source_tokenizer, tokenizer)
    _, _, network = make_parts(source_config, source_tokenizer.vocab_size)
    _check_shapes(where, jax.eval_shape(network.init, jax.random.key(0)), state.params)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    _, weights = restore_weights(folder_of(workdir, source_config.train), abstract, layout)
    return dataclasses.replace(
        state,
        params=_placed_like(weights, state.params),
        ema=_placed_like(jax.tree.map(jnp.copy, weights), state.ema),
    )


def _check_tokenizer(where: str, source: Tokenizer, own: Tokenizer) -> None:
    """Raises UserError unless a token of the two has the same id."""
    if (source.kind, source.model, source.eos_id) != (own.kind, own.model, own.eos_id):
        raise UserError(
            f"config.train.init_from={where} was trained with the tokenizer {source.name}, not "
            f"{own.name}: set config.data.tokenizer to that."
        )


def _check_shapes(where: str, source: Params, own: Params) -> None:
    """Raises UserError unless the two have the same parameters."""
    theirs, ours = _shapes(source), _shapes(own)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"config.train.init_from={where} has {name} of shape {theirs.get(name)}, the "
                f"network of this config {ours.get(name)}: make config.model like its config.json."
            )


def _placed_like(weights: Params, params: Params) -> Params:
    return jax.tree.map(lambda w, x: jax.device_put(w, x.sharding), weights, params)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(key.key) for key in path): tuple(x.shape) for path, x in leaves}
