"""The oracles' weights as the files that a release has, converted by the product."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.interop.files import open_published
from ddm_jax.interop.from_published import write_workdir
from ddm_jax.interop.release_configs import config_of_release
from ddm_jax.interop.releases import RELEASES
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import Run, open_run

WEIGHTS = {
    "sedd": ("sedd", "model_weights"),
    "radd": ("radd", "model_weights"),
    "mdlm": ("mdlm", "dit_weights"),
    "bd3lm": ("mdlm", "dit_weights"),
    "duo": ("mdlm", "dit_weights"),
}
HUB = {
    "model_length": 16,
    "hidden_dim": 64,
    "cond_dim": 32,
    "n_blocks": 2,
    "n_heads": 4,
}
STATED = {
    "sedd": lambda meta: meta["config"],
    "radd": lambda meta: meta["config"],
    "mdlm": lambda _: HUB,
    "bd3lm": lambda _: HUB | {"block_size": 4},
    "duo": lambda _: HUB,
}


def letters(vocab: int) -> Tokenizer:
    """A tokenizer of `vocab` tokens; nothing is encoded."""
    return Tokenizer("bytes", "bytes", vocab, 0, b"")


def write_hub_folder(folder: Path, name: str, weights: dict, stated: dict[str, Any]) -> Path:
    """model.safetensors and config.json, the tensors under the names of the hub."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    folder.mkdir(parents=True)
    prefix = RELEASES[name].prefix
    tensors = {prefix + k: np.ascontiguousarray(x) for k, x in weights.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def converted(oracle: Any, name: str, folder: Path) -> Run:
    """A release's oracle weights through its file into a work directory, and opened."""
    ref, case = WEIGHTS[name]
    weights, meta = oracle(ref, case)
    source = write_hub_folder(folder / "hub", name, weights, STATED[name](meta))
    return convert(name, source, folder / "ours", weights)


def convert(name: str, source: Path, workdir: Path, weights: dict, **options: Any) -> Run:
    """What the command does, in this process, with a vocabulary of any size."""
    release = RELEASES[name]
    found = open_published(str(source), options.get("weights", "ema"), release.scheme.buffers)
    config = config_of_release(release, found.path)
    rows = weights[next(k for k in weights if k in ("vocab_embed.embedding", "wte.weight"))]
    uniform = config.process.name == "uniform"
    vocab = len(rows) - release.added_tokens - (release.mask and not uniform)
    write_workdir(name, found, config, letters(vocab), workdir)
    return open_run(workdir, layout=dp(jax.local_devices()[:1]))
