"""The config of a release <-> ours."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ddm_jax.config import Config, resolve
from ddm_jax.errors import UserError
from ddm_jax.interop.names import GPT2
from ddm_jax.interop.releases import Release
from ddm_jax.recipes import load_recipe
from ddm_jax.settle import settle

# what our network computes; a config.json of GPT-2 may leave each out
GPT2_CONFIG: Mapping[str, Any] = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "layer_norm_epsilon": 1e-5,
}


def config_of_release(release: Release, checkpoint: Path) -> Config:
    """Returns the recipe of a release, settled, with the sizes of the checkpoint's own config.

    Args:
      release: the release.
      checkpoint: the file of the weights; its config is looked for next to it.

    Raises:
      UserError: the checkpoint's network is not one of ours.
    """
    stated = read_stated_config(checkpoint)
    uniform = stated.get("graph.type") == "uniform"
    config = load_recipe(release.recipe)("process=uniform" if uniform else "")
    if release.scheme is GPT2 and (unsupported := unsupported_gpt2_field(stated)):
        name, value = unsupported
        raise UserError(
            f"The config.json of {checkpoint.parent} has {name}={value!r}, and our network has "
            f"{GPT2_CONFIG[name]!r}: convert a GPT-2 as it was published."
        )
    sizes = {ours: stated[key] for key, ours in release.sizes.items() if key in stated}
    if uniform:  # this objective has no such option
        sizes.pop("objective.scale_by_sigma", None)
    for name, value in {**release.fields, **sizes}.items():
        section, _, last = name.partition(".")
        config[section][last] = value
    if config.model.positions == "learned":
        config.data.length = min(config.data.length, config.model.max_length)
    return settle(resolve(config))


def unsupported_gpt2_field(stated: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Returns (name, value) of a field in which a GPT-2 differs from `GPT2_CONFIG`, if one does."""
    for name, supported in GPT2_CONFIG.items():
        if (value := stated.get(name, supported)) != supported:
            return name, value
    return None


def read_stated_config(checkpoint: Path) -> dict[str, Any]:
    """Reads the config next to a checkpoint, with keys like "model.width"; {} if there is none.

    Raises:
      UserError: it cannot be read.
    """
    folder = checkpoint.parent
    paths = [folder / "config.json"]
    paths += [parent / ".hydra/config.yaml" for parent in (folder, folder.parent)]
    for path in paths:
        if path.is_file():
            # JSON is YAML, except for tabs
            parse: Callable[[str], Any] = json.loads if path.suffix == ".json" else yaml.safe_load
            try:
                return _flatten(parse(path.read_text(encoding="utf-8")))
            except (ValueError, AttributeError, yaml.YAMLError) as error:
                raise UserError(f"{path} cannot be read ({error}).") from error
    return {}


def vocabulary_rows(release: Release, config: Config, vocab_size: int) -> int:
    """Returns the rows of the published vocabulary: the tokens, and the mask if there is one."""
    return vocab_size + (release.mask and config.process.name != "uniform")


def rotary_frequencies(config: Config) -> np.ndarray:
    """Returns the frequencies of rotary angles, float32[D / 2H], a buffer of published DiTs."""
    each = config.model.width // config.model.heads
    return (1 / 10_000.0 ** (np.arange(0, each, 2, dtype=np.float32) / each)).astype(np.float32)


def hub_config(name: str, config: Config, rows: int) -> dict[str, Any]:
    """Returns the config.json of a hub folder, as far as our config decides it.

    Args:
      name: a key of `RELEASES`.
      config: the config of the run.
      rows: see `vocabulary_rows`.
    """
    if name == "gpt2":
        return _gpt2_config(config, rows)
    if name in ("sedd", "radd"):
        return _sedd_config(name, config, rows)
    model = config.model
    block = {"block_size": config.objective.block_size} if name == "bd3lm" else {}
    return {
        "model_type": name,
        "vocab_size": rows,
        "model_length": config.data.length,
        "hidden_dim": model.width,
        "cond_dim": model.cond_width,
        "n_blocks": model.depth,
        "n_heads": model.heads,
        "dropout": model.dropout,
        "time_conditioning": model.time == "adaln",
        **block,
    }


def _gpt2_config(config: Config, rows: int) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        **GPT2_CONFIG,
        "n_embd": model.width,
        "n_layer": model.depth,
        "n_head": model.heads,
        "n_positions": model.max_length,
        "n_inner": None if model.mlp_ratio == 4 else model.mlp_ratio * model.width,
        "vocab_size": rows,
    }


def _sedd_config(name: str, config: Config, rows: int) -> dict[str, Any]:
    """Returns the config of SEDD, and of RADD, whose code comes from SEDD's."""
    model, schedule = config.model, config.schedule
    uniform = config.process.name == "uniform"
    own: dict[str, Any] = {"scale_by_sigma": bool(config.objective.scale_by_sigma)}
    if name == "radd":
        own = {"use_checkpoint": False, "dtype": model.compute_dtype}
    noise = {"log_linear": "loglinear"}.get(schedule.name, schedule.name)
    sigmas = {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
    return {
        "tokens": rows - (not uniform),
        "graph": {"type": "uniform" if uniform else "absorb"},
        "noise": {"type": noise} | {k: v for k, v in sigmas.items() if v is not None},
        "model": {
            "name": "small",
            "type": "ddit",
            "hidden_size": model.width,
            "cond_dim": model.cond_width,
            "length": config.data.length,
            "n_blocks": model.depth,
            "n_heads": model.heads,
            "dropout": model.dropout,
            **own,
        },
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat
