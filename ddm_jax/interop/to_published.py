"""The weights of one of our runs -> a hub folder, a Lightning checkpoint, or bare weights."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np

from ddm_jax.config import Config, TrainConfig
from ddm_jax.errors import UserError
from ddm_jax.interop.from_published import MODEL_CARD
from ddm_jax.interop.names import DIT, GPT2, Params, published_from_params
from ddm_jax.interop.release_configs import hub_config, rotary_frequencies, vocabulary_rows
from ddm_jax.interop.releases import RELEASES
from ddm_jax.interop.safetensors import WEIGHTS_FILE, write_safetensors
from ddm_jax.interop.torch_files import write_lightning
from ddm_jax.runs.checkpoint import folder_of, save_weights
from ddm_jax.runs.files import new_folder, write_atomically
from ddm_jax.runs.record import TOKENIZER
from ddm_jax.runs.run import Run

LIGHTNING_SUFFIX = ".ckpt"


def write_release(name: str, run: Run, out: Path, origin: str) -> int:
    """Writes a hub folder, or a Lightning checkpoint if `out` ends in .ckpt, whole or not at all.

    A hub folder has model.safetensors, config.json and MODEL_CARD.md.

    Args:
      name: a key of `RELEASES`.
      run: the run.
      out: the folder or file, which must not exist.
      origin: where the weights come from, in words, for the card.

    Returns:
      Bytes written.

    Raises:
      UserError: `out` exists, the network is not the release's, or the release does not read
        Lightning checkpoints.
    """
    release = RELEASES[name]
    if out.exists():
        raise UserError(f"--out={out} must be a folder or file that does not exist.")
    if out.suffix == LIGHTNING_SUFFIX and not release.prefix:
        raise UserError(
            f"--out={out} is a Lightning checkpoint, which the code of {name} does not read: give "
            "a folder."
        )
    rows = vocabulary_rows(release, run.config, run.tokenizer.vocab_size)
    tensors = published_tensors(name, jax.tree.map(np.asarray, run.params), run.config, rows)
    tensors = {release.prefix + key: x for key, x in tensors.items()}
    if out.suffix == LIGHTNING_SUFFIX:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.unfinished")
        buffers = re.escape(release.prefix) + f"({release.scheme.buffers})"
        write_lightning(unfinished, tensors, buffers, run.config.optim.ema_decay, run.step)
        unfinished.rename(out)
        return out.stat().st_size
    with new_folder(out) as folder:
        write_safetensors(folder / WEIGHTS_FILE, tensors)
        stated = hub_config(name, run.config, rows)
        write_atomically(folder / "config.json", json.dumps(stated, indent=2) + "\n")
        card = f"# {name} layout\n\nWritten by ddm_jax.convert from {origin}.\n"
        write_atomically(folder / MODEL_CARD, card)
    return (out / WEIGHTS_FILE).stat().st_size


def published_tensors(
    name: str, params: Params, config: Config, rows: int
) -> dict[str, np.ndarray]:
    """Converts parameters to published name -> float32 array, with the buffers that DiTs store.

    Args:
      name: a key of `RELEASES`.
      params: our parameters, numpy.
      config: the config of the run.
      rows: see `vocabulary_rows`.

    Raises:
      UserError: the network is not the release's.
    """
    scheme = RELEASES[name].scheme
    _check_network(name, config)
    tensors = published_from_params(scheme, params, rows)
    if scheme is DIT:
        tensors["rotary_emb.inv_freq"] = rotary_frequencies(config)
    return tensors


def write_bare_weights(workdir: Path, run: Run, weights: str, out: Path) -> int:
    """Writes a work directory with the weights of a run and nothing else of its checkpoint.

    Args:
      workdir: the folder of the run.
      run: the run.
      weights: which weights these are, in the words of --weights.
      out: the folder, which must not exist.

    Returns:
      Bytes written.
    """
    record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    record["config"]["train"]["checkpoints"] = ""
    record["weights"] = {"of": weights, "from": str(workdir), "step": run.step}
    with new_folder(out) as folder:
        if (workdir / TOKENIZER).is_dir():  # of converted weights
            shutil.copytree(workdir / TOKENIZER, folder / TOKENIZER)
        save_weights(folder_of(folder, TrainConfig()), run.step, run.params)
        write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _check_network(name: str, config: Config) -> None:
    """Refuses a network that the release's code would not compute."""
    scheme, model = RELEASES[name].scheme, config.model
    if scheme is DIT:
        times = ("none",) if name == "radd" else ("adaln", "constant")
        if model.time not in times:
            raise UserError(
                f"--to={name} has config.model.time={' or '.join(times)}, the run {model.time}: "
                "choose another release."
            )
    wanted = {
        "attention_bias": scheme is GPT2,
        "tied_head": scheme is GPT2,
        "kind": "lm",
        "positions": "learned" if scheme is GPT2 else "rotary",
        **({"shift": False} if scheme is DIT else {}),
        "norm_bias": name in ("radd", "gpt2"),
    }
    for field, value in wanted.items():
        if getattr(model, field) != value:
            raise UserError(
                f"--to={name} has config.model.{field}={value}, the run {getattr(model, field)}: "
                "choose another release."
            )
