"""The weights of one of our runs -> a hub folder or a Lightning checkpoint of a release."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np

from ddm_jax.config import Config
from ddm_jax.errors import UserError
from ddm_jax.interop.files import LIGHTNING, SAFE, write_lightning, write_safetensors
from ddm_jax.interop.from_published import CARD, inverse_frequencies
from ddm_jax.interop.names import DIT, GPT2, Params, tensors_from
from ddm_jax.interop.releases import RELEASES, config_json, rows
from ddm_jax.runs.files import write_atomically
from ddm_jax.runs.run import Run


def give(name: str, run: Run, out: Path, origin: str) -> int:
    """Writes `out`/{model.safetensors, config.json, MODEL_CARD.md}, or a Lightning checkpoint where
    `out` ends in .ckpt: whole or not at all.

    name: of RELEASES. out: not there yet. origin: words for the card. Returns the bytes written.

    Raises:
      UserError: `out` is there, the network is not the release's, or it reads no such checkpoints.
    """
    release = RELEASES[name]
    if out.exists():
        raise UserError(f"--out={out} must be a folder or file that is not there yet.")
    if out.suffix == LIGHTNING and not release.prefix:
        raise UserError(
            f"--out={out} is a Lightning checkpoint, which the code of {name} does not read: give "
            "a folder."
        )
    number = rows(release, run.config, run.tokenizer.vocab_size)
    arrays = published(name, jax.tree.map(np.asarray, run.params), run.config, number)
    arrays = {release.prefix + key: x for key, x in arrays.items()}
    unfinished = out.with_name(f".{out.name}.unfinished")
    if out.suffix == LIGHTNING:
        out.parent.mkdir(parents=True, exist_ok=True)
        derived = re.escape(release.prefix) + f"({release.scheme.derived})"
        decay = run.config.optim.ema_decay
        write_lightning(unfinished, arrays, derived, decay, run.step)
        unfinished.rename(out)
        return out.stat().st_size
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_safetensors(unfinished / SAFE, arrays)
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
        wanted["shift"] = False
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
