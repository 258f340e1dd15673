"""Small runs of the releases' networks, every weight random."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.experiment import make_parts
from ddm_jax.interop.release_configs import config_of_release
from ddm_jax.interop.releases import RELEASES
from ddm_jax.runs.run import Run
from tests.interop.oracle_files import HUB, letters

STATED = {
    "sedd": {"graph": {"type": "absorb"}},
    "radd": {},
    "mdlm": {},
    "bd3lm": {"block_size": 4},
    "duo": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
}
OURS = {"hidden_dim": "hidden_size", "model_length": "length"}


@functools.cache
def new_run(name, vocab=32):
    """A run of the release's network, every weight random, with a tokenizer of ours."""
    sizes = {"model": {OURS.get(k, k): v for k, v in HUB.items()}}
    stated = STATED[name] if name == "gpt2" else STATED[name] | sizes
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(stated))
        config = config_of_release(RELEASES[name], Path(folder) / "model.safetensors")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, compute_dtype="float32"),
        data=dataclasses.replace(config.data, length=16),
    )
    tokenizer = letters(vocab + RELEASES[name].added_tokens)
    process, _, network = make_parts(config, tokenizer.vocab_size)
    leaves, tree = jax.tree.flatten(jax.eval_shape(network.init, jax.random.key(0)))
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.unflatten(tree, [jnp.float32(0.2 * draw(x.shape)) for x in leaves])
    if name == "gpt2":  # which has no bias of the head, and starts a text with its end
        table = params["embed"]["embedding"]
        params["embed"]["embedding"] = table.at[tokenizer.vocab_size].set(table[0])
        params["head"]["bias"] = jnp.zeros_like(params["head"]["bias"])
    return Run(config, tokenizer, process, network, 3, params)
