"""The releases of published weights, as data: names, hub, recipe, and protocol of their numbers.

Hub names and protocols are those that the releases' repositories give; RADD's names could not be
checked where this was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddm_jax.interop.names import DIT, GPT2, NamingScheme


@dataclass(frozen=True)
class Release:
    """A kind of published weights.

    Attributes:
      scheme: names and shapes of the tensors.
      prefix: prefix of the names in a hub folder and in a Lightning checkpoint; "" if the code of
        the release does not read Lightning checkpoints.
      hub: names on the hub.
      recipe: name of our recipe.
      sizes: key of the checkpoint's own config -> field of our config.
      protocol: protocol of the published numbers, in words.
      evaluate: the same protocol as flags of ddm_jax.evaluate.
      fields: fields in which the release differs from the recipe.
      mask: whether the vocabulary has a row for the mask of an absorbing process.
      added_tokens: number of tokens that the release adds to those of its tokenizer.
    """

    scheme: NamingScheme
    prefix: str
    hub: tuple[str, ...]
    recipe: str
    sizes: Mapping[str, str]
    protocol: str
    evaluate: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    mask: bool = True
    added_tokens: int = 0


# keys of the config.yaml of a run, and of the config.json of a hub folder
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
_DIT_FIELDS = {"model.time": "adaln", "model.norm_bias": False}

RELEASES: Mapping[str, Release] = {
    "sedd": Release(
        scheme=DIT,
        prefix="",
        hub=("louaaron/sedd-small", "louaaron/sedd-medium"),
        recipe="sedd_small",
        sizes=_RUN_SIZES | {"model.scale_by_sigma": "objective.scale_by_sigma"},
        protocol=(
            "SEDD's (arXiv:2310.16834): zero-shot perplexities on blocks of 1,024 GPT-2 tokens "
            "of LAMBADA, WikiText2, PTB, WikiText103 and LM1B, from the bound by Monte Carlo"
        ),
        evaluate="--protocol=sedd --dataset=wikitext2",
    ),
    "radd": Release(
        scheme=DIT,
        prefix="",
        hub=(
            "JingyangOu/radd-t-dce",
            "JingyangOu/radd-lambda-dce",
            "JingyangOu/radd-lambda-dce-medium",
        ),
        recipe="radd_small",
        sizes=_RUN_SIZES,
        protocol=(
            "RADD's (arXiv:2406.03736), which is SEDD's: zero-shot perplexities on blocks of "
            "1,024 GPT-2 tokens, from a bound by Monte Carlo"
        ),
        evaluate="--protocol=sedd --dataset=wikitext2",
    ),
    "mdlm": Release(
        scheme=DIT,
        prefix="backbone.",
        hub=("kuleshov-group/mdlm-owt",),
        recipe="mdlm_small",
        sizes=_HUB_SIZES | _RUN_SIZES,
        protocol=(
            "MDLM's (arXiv:2406.07524): perplexity on the last 100,000 documents of "
            "OpenWebText, wrapped to 1,024 GPT-2 tokens, and zero-shot on seven sets"
        ),
        evaluate="--protocol=mdlm --dataset=wikitext103",
    ),
    "bd3lm": Release(
        scheme=DIT,
        prefix="backbone.",
        hub=tuple(f"kuleshov-group/bd3lm-owt-block_size{n}" for n in (4, 8, 16)),
        recipe="bd3lm_small",
        sizes=_HUB_SIZES | _RUN_SIZES | {"block_size": "objective.block_size"},
        protocol="MDLM's sets with a bound by blocks (arXiv:2503.09573)",
        evaluate="--protocol=mdlm --dataset=wikitext103",
        fields=_DIT_FIELDS | {"model.time": "constant"},
    ),
    "duo": Release(
        scheme=DIT,
        prefix="backbone.",
        hub=("s-sahoo/duo", "s-sahoo/duo-distilled"),
        recipe="udlm_small",
        sizes=_HUB_SIZES | _RUN_SIZES,
        protocol="MDLM's sets (Sahoo et al. 2025, The Diffusion Duality)",
        evaluate="--protocol=mdlm --dataset=wikitext103",
        fields=_DIT_FIELDS | {"model.cond_width": 128},
        # its tokenizer adds [PAD], which is a state of the uniform process like any other
        added_tokens=1,
    ),
    "gpt2": Release(
        scheme=GPT2,
        prefix="",
        hub=(
            "openai-community/gpt2",
            "openai-community/gpt2-medium",
            "openai-community/gpt2-large",
        ),
        recipe="ar_small",
        sizes={
            "n_embd": "model.width",
            "n_layer": "model.depth",
            "n_head": "model.heads",
            "n_positions": "model.max_length",
        },
        protocol=(
            "Radford et al. 2019; its numbers there use other detokenisers. As a judge: "
            "generative perplexity of 1,024 tokens under GPT-2 large, as SEDD, MDLM and Duo "
            "report it"
        ),
        evaluate="--protocol=sedd --dataset=wikitext2",
        fields={
            "model.positions": "learned",
            "model.max_length": 1024,
            "model.attention_bias": True,
            "model.norm_bias": True,
            "model.tied_head": True,
        },
        mask=False,
    ),
}
