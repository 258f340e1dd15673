"""Published weights -> one of our work directories."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.config import Config, TrainConfig
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.interop.files import PublishedWeights
from ddm_jax.interop.names import GPT2, Params, params_from_published
from ddm_jax.interop.release_configs import rotary_frequencies, vocabulary_rows
from ddm_jax.interop.releases import RELEASES, Release
from ddm_jax.runs.checkpoint import folder_of, save_weights
from ddm_jax.runs.files import new_folder, write_atomically
from ddm_jax.runs.record import CONVERTED, TOKENIZER, git_revision, versions

MODEL_CARD = "MODEL_CARD.md"


def write_workdir(
    name: str, published: PublishedWeights, config: Config, tokenizer: Tokenizer, workdir: Path
) -> dict[str, Any]:
    """Writes a work directory of published weights, as a whole or not at all.

    Args:
      name: a key of `RELEASES`.
      published: the weights.
      config: our config, settled.
      tokenizer: the release's tokenizer, without the tokens that the release adds.
      workdir: the folder, which must not exist.

    Returns:
      What the record of the work directory states about the source.

    Raises:
      UserError: the folder exists, or the tensors are not those of the network (names.py).
    """
    if workdir.exists():
        raise UserError(f"--workdir={workdir} exists: give a folder that does not.")
    release = RELEASES[name]
    tokenizer = dataclasses.replace(
        tokenizer, vocab_size=tokenizer.vocab_size + release.added_tokens
    )
    params = convert_params(release, published.tensors, config, tokenizer)
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
    with new_folder(workdir) as unfinished:
        (unfinished / TOKENIZER).mkdir()
        tokenizer.save(unfinished / TOKENIZER)
        save_weights(folder_of(unfinished, TrainConfig()), published.step, params)
        write_atomically(unfinished / MODEL_CARD, model_card(release, source, workdir))
        write_atomically(unfinished / "config.json", json.dumps(record, indent=2) + "\n")
    return source


def convert_params(
    release: Release, tensors: Mapping[str, np.ndarray], config: Config, tokenizer: Tokenizer
) -> Params:
    """Converts published tensors to our parameters, float32 numpy.

    GPT-2 has no token that starts a text, which our autoregressive networks read from the row of
    the mask. That row becomes a copy of the row of its end of text, after which GPT-2 was trained
    to start a text.

    Args:
      release: the release.
      tensors: published name -> array.
      config: our config, settled.
      tokenizer: the tokenizer of the work directory.

    Raises:
      UserError: see `params_from_published`; or a buffer does not have the expected values.
    """
    _, _, network = make_parts(config, tokenizer.vocab_size)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    rows = vocabulary_rows(release, config, tokenizer.vocab_size)
    params = params_from_published(release.scheme, tensors, abstract, rows)
    _check_buffers(tensors, config)
    if release.scheme is GPT2:
        table = params["embed"]["embedding"]
        table[tokenizer.vocab_size] = table[tokenizer.eos_id]
    return params


def model_card(release: Release, source: Mapping[str, Any], workdir: Path) -> str:
    """Returns MODEL_CARD.md: the origin of the weights, and how their numbers were measured."""
    return f"""# {source["release"]}, converted

- from: {source["file"]}
- sha256: {source["sha256"]}
- weights: {source["weights"]}, step {source["step"]}
- parameters: {source["parameters"]:,}, with the padding of the vocabulary
- on the hub: {", ".join(release.hub)}
- protocol of the published numbers: {release.protocol}

    python -m ddm_jax.evaluate --workdir={workdir} {release.evaluate}
    python -m ddm_jax.sample --workdir={workdir}
    python -m ddm_jax.main --config=RECIPE --config.train.init_from={workdir} --workdir=NEW
"""


def _check_buffers(tensors: Mapping[str, np.ndarray], config: Config) -> None:
    """Refuses rotary frequencies that are not ours, and a head that is not tied."""
    if (name := "rotary_emb.inv_freq") in tensors:
        ours, theirs = rotary_frequencies(config), tensors[name]
        if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=1e-2):
            raise UserError(
                f"The checkpoint's tensor {name} has shape {theirs.shape}, the network's "
                f"frequencies have shape {ours.shape}, or other values: look at "
                "config.model.heads."
            )
    if (name := "lm_head.weight") in tensors and not np.array_equal(
        tensors[name], tensors["wte.weight"]
    ):
        raise UserError(
            f"The checkpoint's {name} is not its wte.weight: a GPT-2 with a head of its own is not "
            "one as it was published."
        )
