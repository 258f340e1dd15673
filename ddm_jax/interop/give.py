"""The weights of one of our runs -> a folder in the published layout."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from ddm_jax.config import Config
from ddm_jax.errors import UserError
from ddm_jax.interop.bring import CARD, inverse_frequencies
from ddm_jax.interop.files import SAFE, write_safetensors
from ddm_jax.interop.names import DIT, GPT2, Params, tensors_from
from ddm_jax.interop.releases import RELEASES, config_json, rows
from ddm_jax.trained import Run
from ddm_jax.training.writers import write_atomically


def give(name: str, run: Run, out: Path, origin: str) -> int:
    """Writes `out`/{model.safetensors, config.json, MODEL_CARD.md}, whole or not at all.

    name: of RELEASES. out: not there yet. origin: words for the card. Returns the bytes written.

    Raises:
      UserError: the folder is there, or the network is not the release's.
    """
    if out.exists():
        raise UserError(f"--out={out} must be a folder that is not there yet.")
    release = RELEASES[name]
    number = rows(release, run.config, run.tokenizer.vocab_size)
    arrays = published(name, jax.tree.map(np.asarray, run.params), run.config, number)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_safetensors(unfinished / SAFE, {release.prefix + key: x for key, x in arrays.items()})
    stated = config_json(name, run.config, number)
    write_atomically(unfinished / "config.json", json.dumps(stated, indent=2) + "\n")
    text = f"# {name} layout\n\nWritten by ddm_jax.convert from {origin}.\n"
    write_atomically(unfinished / CARD, text)
    unfinished.rename(out)
    return (out / SAFE).stat().st_size


def published(name: str, params: Params, config: Config, number: int) -> dict[str, np.ndarray]:
    """Published name -> float32 array, the angles that DiTs keep included; number: of rows.

    Raises:
      UserError: the network is not the release's.
    """
    scheme, model = RELEASES[name].scheme, config.model
    wanted = {"attention_bias": scheme is GPT2, "tied_head": scheme is GPT2, "kind": "lm"}
    wanted["positions"] = "learned" if scheme is GPT2 else "rotary"
    if scheme is DIT:
        adaln = ("none",) if name == "radd" else ("adaln", "constant")
        if model.time not in adaln:
            raise UserError(
                f"--to={name} has config.model.time={' or '.join(adaln)}, the run {model.time}: "
                "choose another release."
            )
    wanted["norm_bias"] = name in ("radd", "gpt2")
    for field, value in wanted.items():
        if getattr(model, field) != value:
            raise UserError(
                f"--to={name} has config.model.{field}={value}, the run {getattr(model, field)}: "
                "choose another release."
            )
    arrays = tensors_from(scheme, params, number)
    if scheme is DIT:
        arrays["rotary_emb.inv_freq"] = inverse_frequencies(config)
    return arrays
