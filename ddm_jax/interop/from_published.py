"""Published weights -> one of our work directories."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.config import Config, TrainConfig
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.interop.files import Published
from ddm_jax.interop.names import GPT2, params_from
from ddm_jax.interop.releases import RELEASES, Release, rows
from ddm_jax.runs.checkpoint import folder_of, save_weights
from ddm_jax.runs.files import write_atomically
from ddm_jax.runs.record import CONVERTED, TOKENIZER, git_revision, versions

CARD = "MODEL_CARD.md"


def bring(
    name: str, published: Published, config: Config, tokenizer: Tokenizer, workdir: Path
) -> dict[str, Any]:
    """Writes workdir, whole or not at all; returns what its record says of the source.

    Args:
      name: of RELEASES.
      config: settled.
      tokenizer: of the release, without the tokens that it adds.
      workdir: not there yet.

    Raises:
      UserError: the folder is there, or the tensors are not those of the network (names.py).
    """
    if workdir.exists():
        raise UserError(f"--workdir={workdir} is there already: give a folder that is not.")
    release = RELEASES[name]
    tokenizer = dataclasses.replace(
        tokenizer, vocab_size=tokenizer.vocab_size + release.added_tokens
    )
    params = weights(release, published.tensors, config, tokenizer)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, checkpoints="", init_from="")
    )
    source = {
        "release": name,
        "file": str(published.path),
        "sha256": published.sha256,
        "weights": published.weights or "the only ones",
        "step": published.step,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
    }
    record = {
        "config": dataclasses.asdict(config),
        "data": {"tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}},
        CONVERTED: source,
        "versions": versions(),
        "git_revision": git_revision(),
    }
    unfinished = workdir.with_name(f".{workdir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / TOKENIZER).mkdir(parents=True)
    tokenizer.save(unfinished / TOKENIZER)
    save_weights(folder_of(unfinished, TrainConfig()), published.step, params)
    write_atomically(unfinished / CARD, card(release, source, workdir))
    write_atomically(unfinished / "config.json", json.dumps(record, indent=2) + "\n")
    unfinished.rename(workdir)
    return source


def weights(
    release: Release, tensors: Mapping[str, np.ndarray], config: Config, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Our parameters, float32 numpy, for the settled config and the tokenizer of a work directory.

    GPT-2 has no token that starts a text, which our autoregressive networks read at the mask's row:
    there it gets the row of its end of text, after which it was trained to start one.

    Raises:
      UserError: see `params_from`; or tensors that hold no weights are not what they should be.
    """
    _, _, network = make_parts(config, tokenizer.vocab_size)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    params = params_from(
        release.scheme, tensors, abstract, rows(release, config, tokenizer.vocab_size)
    )
    _check_derived(tensors, config)
    if release.scheme is GPT2:
        table = params["embed"]["embedding"]
        table[tokenizer.vocab_size] = table[tokenizer.eos_id]
    return params


def inverse_frequencies(config: Config) -> np.ndarray:
    """Of rotary angles, float32[D / 2H], which the published networks keep beside their weights."""
    each = config.model.width // config.model.heads
    return (1 / 10_000.0 ** (np.arange(0, each, 2, dtype=np.float32) / each)).astype(np.float32)


def card(release: Release, source: Mapping[str, Any], workdir: Path) -> str:
    """MODEL_CARD.md: where the weights came from, and how their published numbers were made."""
    return f"""# {source["release"]}, converted

- from: {source["file"]}
- sha256: {source["sha256"]}
- weights: {source["weights"]}, step {source["step"]}
- parameters: {source["parameters"]:,}, what pads the vocabulary included
- on the hub: {", ".join(release.hub)}
- protocol of the published numbers: {release.protocol}

    python -m ddm_jax.evaluate --workdir={workdir} {release.evaluate}
    python -m ddm_jax.sample --workdir={workdir}
    python -m ddm_jax.main --config=RECIPE --config.train.init_from={workdir} --workdir=NEW
"""


def _check_derived(tensors: Mapping[str, np.ndarray], config: Config) -> None:
    """Refuses angles that ours are not, and a head that is not tied."""
    if (name := "rotary_emb.inv_freq") in tensors:
        ours, theirs = inverse_frequencies(config), tensors[name]
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=1e-2):
            raise UserError(
                f"The checkpoint's tensor {name} has shape {theirs.shape}, the network's angles "
                f"{ours.shape}, or other values: look at config.model.heads."
            )
    if (name := "lm_head.weight") in tensors and not np.array_equal(
        tensors[name], tensors["wte.weight"]
    ):
        raise UserError(
            f"The checkpoint's {name} is not its wte.weight: a GPT-2 with a head of its own is not "
            "one as it was published."
        )
