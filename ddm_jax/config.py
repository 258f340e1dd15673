"""Every setting of a run in one file, with its default and its allowed values.

A recipe (configs/*.py) starts from `defaults()` and sets fields; ml_collections lets the command
line override any of them; `resolve` turns the result into these frozen records, or says in one
sentence what is wrong.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ml_collections import config_dict

from ddm_jax.config_fields import (
    check_known,
    choice,
    from_mapping,
    is_section,
    number,
    plain_type,
    setting,
    to_config_dict,
)
from ddm_jax.errors import UserError
from ddm_jax.plugins import load_plugins

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The network; the defaults are RADD-small's."""

    kind: str = choice(
        ("lm", "encoder_decoder", "prefix"),
        "lm: text only; for pairs: encoder_decoder (RDM's) or prefix (one stack for both sides)",
    )
    width: int = number(768, "features of a token between the layers", low=2)
    depth: int = number(12, "layers; of encoder_decoder: of each of the two", low=1)
    heads: int = number(12, "attention heads; they split the width evenly", low=1)
    mlp_ratio: int = number(4, "inner width of the MLPs, as a multiple of the width", low=1)
    time: str = choice(
        ("auto", "none", "adaln", "constant", "input"),
        "time input; none: RADD's blocks; adaln: SEDD's blocks, conditioned on sigma; constant: "
        "SEDD's, at sigma = 0; input: of encoder_decoder, added to the embeddings of the tokens; "
        "auto: the objective's",
    )
    positions: str = choice(
        ("rotary", "learned"),
        "of kind=lm: rotary angles, or GPT-2's, a learned vector for each of max_length positions",
    )
    max_length: int = number(
        256, "learned positions; of pairs: positions, and target lengths to choose from", low=2
    )
    cond_width: int = number(128, "features of the time embedding of adaLN blocks", low=1)
    norm_bias: bool = setting(True, "biases in LayerNorm, as in RADD; SEDD and MDLM have none")
    attention_bias: bool = setting(False, "biases in the attention, as in GPT-2; of kind=lm")
    tied_head: bool = setting(False, "the head is the transposed embedding of the tokens")
    shift: bool = setting(
        False,
        "of kind=lm: token i is predicted at the position of token i - 1, as in a network of the "
        "objective ar, from whose weights training can start (train.init_from)",
    )
    dropout: float = number(0.0, "probability of dropout", low=0, high=0.99)
    compute_dtype: str = choice(
        ("float32", "bfloat16", "float64"), "of activations and matmuls; parameters stay float32"
    )
    gradient_dtype: str = choice(
        ("float32", "bfloat16"), "of the gradients of matrices, and of their sums over devices"
    )
    attention: str = choice(
        ("auto", "plain", "frugal", "xla", "cudnn", "splash"),
        "implementation; frugal: recomputes the scores in the backward pass (CPU); cudnn: GPUs; "
        "splash: TPUs; auto: what suits the device",
    )
    remat: str = choice(
        ("none", "dots", "full"),
        "what the backward pass recomputes of a layer; none: nothing; dots: all but the matmuls; "
        "full: everything",
    )


@dataclass(frozen=True)
class ProcessConfig:
    """The forward process; "auto" is the objective's, empty options take the process's defaults."""

    name: str = setting("auto", "the forward process")
    steps: int | None = number(None, "T, the number of steps", low=1)
    p_uniform: float | None = number(
        None, "share of redrawn tokens in the noise, the rest being masks", low=0, high=0.99
    )
    neighbours: int | None = number(None, "nearest neighbours of a token in the graph", low=1)
    embedding: str | None = setting(None, "of the nearest neighbours: .npy file, float[V, D]")


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule; "auto" is the process's, empty options take the schedule's defaults."""

    name: str = setting("auto", "alpha(t), the probability that a token is clean at time t")
    eps: float | None = number(None, "distance of alpha from its limits", low=0, high=0.5)
    sigma_min: float | None = number(None, "total noise at t = 0", low=0)
    sigma_max: float | None = number(None, "total noise at t = 1", low=0)
    k: float | None = number(None, "exponent of t", low=0)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training objective; empty options take the objective's defaults where it has them."""

    name: str = setting("radd_t_dce", "the training objective")
    steps: int | None = number(None, "T of the bound in T steps; 0: continuous time", low=0)
    importance: bool | None = setting(None, "times are drawn in proportion to their weight")
    scale_by_sigma: bool | None = setting(
        None, "the network's output is log s_y + log(e^sigma_bar - 1) + log V, not log s_y"
    )
    ce_weight: float | None = number(None, "lambda of L_vb + lambda CE", low=0)
    block_size: int | None = number(None, "tokens of a block, a divisor of data.length", low=1)
    clip_low: float | None = number(None, "smallest time in training", low=0, high=1)
    clip_high: float | None = number(None, "largest time in training", low=0, high=1)
    weighting: str | None = choice(
        (None, "elbo", "clamped", "dynamic", "linear", "reciprocal", "none"),
        "weights of the training loss: elbo, clamped, dynamic for gidd, the others for rdm",
    )
    q_sample: str | None = choice(
        (None, "default", "multi_step", "multi_sample", "coupled"),
        "how noised tokens are drawn: one time and sample, two times, two samples, or RDM's "
        "conditioned training",
    )
    label_smoothing: float | None = number(None, "of the cross entropy", low=0, high=0.99)
    length_weight: float = number(
        0.1, "of pairs: weight of the cross entropy of the target's length", low=0
    )
    power: float | None = number(None, "w of alpha = 1 - t^w before training", low=1e-3)


@dataclass(frozen=True)
class DataConfig:
    """The text, how it is split into tokens and blocks, and where prepared sets are kept."""

    source: str = setting("embedded", "text or pairs, or the folder of a prepared set")
    tokenizer: str = setting("sentencepiece:2048", "how text becomes tokens")
    length: int = number(
        1024, "tokens of a block; of pairs: of the longest target, EOS included", low=2
    )
    pack: str = choice(
        ("wrap", "pad"), "wrap: documents are concatenated and cut; pad: one document per block"
    )
    root: str = setting("~/.cache/ddm_jax", "folder of prepared sets")
    validation_fraction: float = number(
        0.04, "share held out for validation, if there is no such split", low=0, high=0.5
    )
    test_fraction: float = number(0.04, "likewise, for the test split", low=0, high=0.5)
    workers: int = number(0, "loader processes; 0 loads in a thread", low=0)
    validation: str = setting(
        "", "source of the validation split, named like source; empty: a fraction"
    )
    test: str = setting("", "likewise, for the test split")
    source_length: int = number(256, "of pairs: tokens of the longest source, EOS included", low=2)
    buckets: int = number(
        3, "of pairs: number of batch shapes, each twice as long as the last", low=1, high=8
    )
    eos: str = choice(
        ("auto", "given", "predicted"),
        "of pairs: whether a target's EOS is given, or noised and learned; auto: the objective's",
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up, clipping and an exponential moving average."""

    lr: float = number(3e-4, "learning rate after the warm-up", low=0)
    warmup_steps: int = number(2_500, "steps in which the learning rate rises", low=0)
    decay: str = choice(
        ("constant", "cosine", "linear", "inverse_sqrt"),
        "of the learning rate after the warm-up; cosine and linear fall to 0 at train.steps",
    )
    b1: float = number(0.9, "decay of AdamW's mean of gradients", low=0, high=1)
    b2: float = number(0.999, "decay of AdamW's mean of squared gradients", low=0, high=1)
    eps: float = number(1e-8, "AdamW's, added to the root", low=0)
    weight_decay: float = number(0.0, "of matrices and embeddings only", low=0)
    clip: float = number(1.0, "largest global norm of the gradient; 0: any", low=0)
    ema_decay: float = number(0.9999, "of the averaged weights", low=0, high=1)


@dataclass(frozen=True)
class TrainConfig:
    """Length of training, batch, checkpoints and logs."""

    steps: int = number(400_000, "updates of the whole run", low=1)
    batch_size: int = number(512, "sequences, over all devices and processes", low=1)
    microbatches: int = number(1, "parts of a batch, one after the other, to save memory", low=1)
    init_from: str = setting("", "workdir of a run or of converted weights to start from")
    times: str = choice(
        ("stratified", "antithetic", "independent"), "how times are drawn, over the global batch"
    )
    log_every: int = number(100, "steps between two lines of metrics.jsonl", low=1)
    checkpoint_every: int = number(2_500, "steps between two checkpoints", low=1)
    checkpoints: str = setting("", "their folder, gs://BUCKET/FOLDER too; empty: in the workdir")
    keep_last: int = number(2, "number of newest checkpoints that are kept", low=1)
    keep_every: int = number(50_000, "checkpoints at its multiples are never deleted", low=1)
    max_bad_steps: int = number(20, "non-finite updates in a row before the run stops", low=1)
    wandb_project: str = setting("", "project of Weights & Biases; empty: none")
    profile: int = number(0, "number of steps to trace into the workdir", low=0)


@dataclass(frozen=True)
class EvalConfig:
    """Validation while training."""

    every: int = number(5_000, "steps between two validations", low=1)
    estimator: str = setting("auto", "the objective that bounds the likelihood")
    batch_size: int = number(64, "sequences, over all devices", low=1)
    sequences: int = number(512, "held-out blocks used, at most", low=2)
    draws: int = number(4, "corruptions of each block", low=1)
    translations: int = number(128, "of pairs: number that BLEU is measured on", low=1)


@dataclass(frozen=True)
class SamplerConfig:
    """Text samples while training; empty options take the sampler's defaults where it has them."""

    name: str = setting("auto", "the sampler")
    steps: int = number(128, "steps of the sampler", low=1)
    num: int = number(3, "texts to draw at each validation", low=1)
    temperature: float = number(1.0, "of the draws; 0 takes the best token", low=0)
    lengths: int = number(1, "of pairs: number of most likely target lengths to try", low=1)
    candidates: int = number(1, "of pairs: targets to draw at each length", low=1)
    selection: str = choice(
        ("score", "mbr"),
        "of the candidates: by their mean log-probability, or by BLEU against the others",
    )
    order: str | None = setting(None, "left, right, random, or positions such as 2,0,1")
    gamma: float | None = number(None, "entropy that a step may reveal, in nats", low=0)
    routing: str | None = choice(
        (None, "uncond", "cond", "default"), "which positions return to noise (docs/seq2seq.md)"
    )
    cutoff: str | None = choice(
        (None, "linear", "cosine"), "how many positions stay noise after each step"
    )
    noise_scale: float | None = number(None, "of the noise on the scores of positions", low=0)
    strategy: str | None = choice(
        (None, "cap", "rescale"), "whether eta limits or scales what is masked again"
    )
    eta: float | None = number(None, "how much is masked again", low=0, high=1)
    kappa: float | None = number(None, "share of the ancestral step", low=0, high=1)


@dataclass(frozen=True)
class LayoutConfig:
    """How a run is laid out on devices: a row of parallel/layouts.py."""

    name: str = setting("dp", "how parameters and batches are split over devices")
    axes: str = setting("", "sizes of the mesh's axes, such as fsdp=16,model=4; the others follow")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = number(0, "of all random numbers", low=0, high=2**31 - 1)
    plugins: tuple[str, ...] = setting(
        (), "modules or .py files that add objectives, samplers, ... (docs/plugins.md)"
    )
    model: ModelConfig = ModelConfig()
    process: ProcessConfig = ProcessConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sampler: SamplerConfig = SamplerConfig()
    layout: LayoutConfig = LayoutConfig()


def defaults() -> config_dict.ConfigDict:
    """Every field with its default, as an ml_collections record that recipes fill in."""
    return to_config_dict(Config)


def resolve(config: config_dict.ConfigDict) -> Config:
    """Checks every field of a recipe and freezes it; settle.settle then fits the parts together.

    The plug-ins that it names are imported, so that their rows are there when names are looked up.

    Raises:
      UserError: an unknown field, a wrong type, a value out of range, or fields that contradict
        each other.
    """
    resolved: Config = from_mapping(Config, config.to_dict(), "config")
    _check_together(resolved)
    plugins = load_plugins(resolved.plugins, Config)
    return dataclasses.replace(resolved, plugins=plugins)


def variants(arg: str | None, **allowed: tuple[str, ...]) -> dict[str, str]:
    """Reads a config argument such as `loss=lambda_dce`; the first allowed word is the default.

    Args:
      arg: what follows the colon in `--config=configs/recipe.py:key=word,key=word`.
      **allowed: for each key, its words.

    Raises:
      UserError: an unknown key or word.
    """
    chosen = {key: words[0] for key, words in allowed.items()}
    for part in filter(None, (arg or "").split(",")):
        key, _, word = part.partition("=")
        if word not in allowed.get(key, ()):
            options = "; ".join(f"{k}={'|'.join(v)}" for k, v in allowed.items())
            remedy = f"use {options}" if allowed else "this recipe takes none"
            raise UserError(f"config argument {part!r} is unknown: {remedy}.")
        chosen[key] = word
    return chosen


def field_type(path: str) -> type:
    """The type of a field: `train.steps` -> int.

    Raises:
      UserError: there is no such field, or it is a section.
    """
    hint: Any = Config
    where = "config"
    for name in path.split("."):
        if not is_section(hint):
            raise UserError(f"{where}.{name} is unknown: {where} is a value, not a section.")
        check_known(hint, name, where)
        hint, where = typing.get_type_hints(hint)[name], f"{where}.{name}"
    if is_section(hint):
        names = ", ".join(f.name for f in dataclasses.fields(hint))
        raise UserError(f"{where} is a section, not a value: set one of its fields, {names}.")
    return plain_type(hint)


def lookup(table: Mapping[str, T], value: str, where: str) -> T:
    """The table's entry for a config value.

    Raises:
      UserError: there is none; the message lists those that exist.
    """
    if value not in table:
        raise UserError(f"{where}={value!r} is unknown: choose one of {', '.join(sorted(table))}.")
    return table[value]


def _check_together(c: Config) -> None:
    """Checks fields that depend on each other but on no table of names (for those: settle.py)."""
    if c.model.width % c.model.heads or (c.model.width // c.model.heads) % 2:
        raise UserError(
            f"config.model.width={c.model.width} does not split into config.model.heads="
            f"{c.model.heads} heads of an even width: make it a multiple of {2 * c.model.heads}."
        )
    for name in ("positions", "attention_bias", "shift"):
        value = getattr(c.model, name)
        if c.model.kind != "lm" and value != getattr(ModelConfig, name):
            raise UserError(
                f"config.model.{name}={value!r} is for config.model.kind='lm', not "
                f"{c.model.kind!r}: leave it at its default."
            )
    if c.train.batch_size % c.train.microbatches:
        raise UserError(
            f"config.train.batch_size={c.train.batch_size} is not divisible by "
            f"config.train.microbatches={c.train.microbatches}: choose a divisor."
        )
    if c.data.validation_fraction + c.data.test_fraction >= 1:
        raise UserError(
            f"config.data.validation_fraction={c.data.validation_fraction} and "
            f"config.data.test_fraction={c.data.test_fraction} leave no text to train on: "
            "make their sum smaller than 1."
        )
