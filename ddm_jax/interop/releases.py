"""The releases of published weights, as data: layout, hub names, recipe, protocol of their numbers.

Hub names and protocols are those that the releases' repositories give; RADD's names could not be
checked where this was written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ddm_jax.config import Config, resolve
from ddm_jax.errors import UserError
from ddm_jax.interop.names import DIT, GPT2, WANTED, Scheme
from ddm_jax.recipes import load_recipe
from ddm_jax.settle import settle


@dataclass(frozen=True)
class Release:
    """What weights of a kind are.

    scheme: names and shapes. prefix: of the names in a hub folder, and in a Lightning checkpoint,
    which the code of those that have one reads. hub: names there. recipe: the name of ours.
    sizes: key of their config -> field of ours. protocol: of the published numbers, in words;
    evaluate: as flags of ddm_jax.evaluate. fields: where the release is not the recipe. mask:
    whether the vocabulary has a row for the mask of an absorbing process. added_tokens: beyond the
    tokenizer's.
    """

    scheme: Scheme
    prefix: str
    hub: tuple[str, ...]
    recipe: str
    sizes: Mapping[str, str]
    protocol: str
    evaluate: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    mask: bool = True
    added_tokens: int = 0


_RUN_SIZES = {
    "model.hidden_size": "model.width",
    "model.n_blocks": "model.depth",
    "model.n_heads": "model.heads",
    "model.cond_dim": "model.cond_width",
    "model.length": "data.length",
}
_HUB_SIZES = {
    "hidden_dim": "model.width",
    "n_blocks": "model.depth",
    "n_heads": "model.heads",
    "cond_dim": "model.cond_width",
    "model_length": "data.length",
}
_DIT = {"model.time": "adaln", "model.norm_bias": False}

RELEASES: Mapping[str, Release] = {
    "sedd": Release(
        DIT,
        "",
        ("louaaron/sedd-small", "louaaron/sedd-medium"),
        "sedd_small",
        _RUN_SIZES | {"model.scale_by_sigma": "objective.scale_by_sigma"},
        "SEDD's (arXiv:2310.16834): zero-shot perplexities on blocks of 1,024 GPT-2 tokens of "
        "LAMBADA, WikiText2, PTB, WikiText103 and LM1B, from the bound by Monte Carlo",
        "--protocol=sedd --dataset=wikitext2",
    ),
    "radd": Release(
        DIT,
        "",
        (
            "JingyangOu/radd-t-dce",
            "JingyangOu/radd-lambda-dce",
            "JingyangOu/radd-lambda-dce-medium",
        ),
        "radd_small",
        _RUN_SIZES,
        "RADD's (arXiv:2406.03736), which is SEDD's: zero-shot perplexities on blocks of 1,024 "
        "GPT-2 tokens, from a bound by Monte Carlo",
        "--protocol=sedd --dataset=wikitext2",
    ),
    "mdlm": Release(
        DIT,
        "backbone.",
        ("kuleshov-group/mdlm-owt",),
        "mdlm_small",
        _HUB_SIZES | _RUN_SIZES,
        "MDLM's (arXiv:2406.07524): perplexity on the last 100,000 documents of "
        "OpenWebText, wrapped to 1,024 GPT-2 tokens, and zero-shot on seven sets",
        "--protocol=mdlm --dataset=wikitext103",
    ),
    "bd3lm": Release(
        DIT,
        "backbone.",
        tuple(f"kuleshov-group/bd3lm-owt-block_size{n}" for n in (4, 8, 16)),
        "bd3lm_small",
        _HUB_SIZES | _RUN_SIZES | {"block_size": "objective.block_size"},
        "MDLM's sets with a bound by blocks (arXiv:2503.09573)",
        "--protocol=mdlm --dataset=wikitext103",
        _DIT | {"model.time": "constant"},
    ),
    "duo": Release(
        DIT,
        "backbone.",
        ("s-sahoo/duo", "s-sahoo/duo-distilled"),
        "udlm_small",
        _HUB_SIZES | _RUN_SIZES,
        "MDLM's sets (Sahoo et al. 2025, The Diffusion Duality)",
        "--protocol=mdlm --dataset=wikitext103",
        _DIT | {"model.cond_width": 128},
        # its tokenizer adds [PAD], which is a state of the uniform process like any other
        added_tokens=1,
    ),
    "gpt2": Release(
        GPT2,
        "",
        ("openai-community/gpt2", "openai-community/gpt2-medium", "openai-community/gpt2-large"),
        "ar_small",
        {
            "n_embd": "model.width",
            "n_layer": "model.depth",
            "n_head": "model.heads",
            "n_positions": "model.max_length",
        },
        "Radford et al. 2019; its numbers there use other detokenisers. As a judge: generative "
        "perplexity of 1,024 tokens under GPT-2 large, as SEDD, MDLM and Duo report it",
        "--protocol=sedd --dataset=wikitext2",
        {
            "model.positions": "learned",
            "model.max_length": 1024,
            "model.attention_bias": True,
            "model.norm_bias": True,
            "model.tied_head": True,
        },
        mask=False,
    ),
}


def settled(release: Release, checkpoint: Path) -> Config:
    """The recipe of a release with the sizes that the checkpoint's own config states.

    Raises:
      UserError: the checkpoint is of a network that ours is not.
    """
    stated = stated_config(checkpoint)
    uniform = stated.get("graph.type") == "uniform"
    config = load_recipe(release.recipe)("process=uniform" if uniform else "")
    if release.scheme is GPT2:
        for name, wanted in WANTED.items():
            if (value := stated.get(name, wanted)) != wanted:
                raise UserError(
                    f"The config.json of {checkpoint.parent} has {name}={value!r}, and our network "
                    f"{wanted!r}: convert a GPT-2 as it was published."
                )
    sizes = {ours: stated[key] for key, ours in release.sizes.items() if key in stated}
    if uniform:  # it has no such option
        sizes.pop("objective.scale_by_sigma", None)
    for name, value in {**release.fields, **sizes}.items():
        section, _, last = name.partition(".")
        config[section][last] = value
    if config.model.positions == "learned":
        config.data.length = min(config.data.length, config.model.max_length)
    return settle(resolve(config))


def stated_config(checkpoint: Path) -> dict[str, Any]:
    """What the config beside a checkpoint says, "model.width" for nested keys; empty: none is."""
    folder = checkpoint.parent
    for path in (
        folder / "config.json",
        *(f / ".hydra/config.yaml" for f in (folder, folder.parent)),
    ):
        if path.is_file():
            try:
                # JSON is YAML, but for tabs
                read = json.loads if path.suffix == ".json" else yaml.safe_load
                return _flat(read(path.read_text(encoding="utf-8")))
            except (ValueError, AttributeError, yaml.YAMLError) as error:
                raise UserError(f"{path} cannot be read ({error}).") from error
    return {}


def rows(release: Release, config: Config, vocab_size: int) -> int:
    """Of the published vocabulary: the tokens, and the mask where there is one."""
    return vocab_size + (release.mask and config.process.name != "uniform")


def config_json(name: str, config: Config, rows: int) -> dict[str, Any]:
    """The config.json of a hub folder, as far as our config decides it."""
    model, length = config.model, config.data.length
    if name == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            **WANTED,
            "n_embd": model.width,
            "n_layer": model.depth,
            "n_head": model.heads,
            "n_positions": model.max_length,
            "n_inner": None if model.mlp_ratio == 4 else model.mlp_ratio * model.width,
            "vocab_size": rows,
        }
    if name in ("sedd", "radd"):
        uniform = config.process.name == "uniform"
        own = {"scale_by_sigma": bool(config.objective.scale_by_sigma)}
        if name == "radd":
            own = {"use_checkpoint": False, "dtype": model.compute_dtype}
        noise = {"log_linear": "loglinear"}.get(config.schedule.name, config.schedule.name)
        sigmas = {"sigma_min": config.schedule.sigma_min, "sigma_max": config.schedule.sigma_max}
        return {
            "tokens": rows - (not uniform),
            "graph": {"type": "uniform" if uniform else "absorb"},
            "noise": {"type": noise} | {k: v for k, v in sigmas.items() if v is not None},
            "model": {
                "name": "small",
                "type": "ddit",
                "hidden_size": model.width,
                "cond_dim": model.cond_width,
                "length": length,
                "n_blocks": model.depth,
                "n_heads": model.heads,
                "dropout": model.dropout,
                **own,
            },
        }
    block = {"block_size": config.objective.block_size} if name == "bd3lm" else {}
    return {
        "model_type": name,
        "vocab_size": rows,
        "model_length": length,
        "hidden_dim": model.width,
        "cond_dim": model.cond_width,
        "n_blocks": model.depth,
        "n_heads": model.heads,
        "dropout": model.dropout,
        "time_conditioning": model.time == "adaln",
        **block,
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found
