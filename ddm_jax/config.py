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
    to_config_dict,
)
from ddm_jax.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The network; the defaults are RADD-small's."""

    # lm: text only. From a source to a target: encoder_decoder (RDM's), prefix (one stack for both)
    kind: str = choice("lm", "encoder_decoder", "prefix")
    width: int = number(768, low=2)
    depth: int = number(12, low=1)
    heads: int = number(12, low=1)
    mlp_ratio: int = number(4, low=1)
    # none: RADD's blocks; adaln: SEDD's, conditioned on sigma; constant: SEDD's, at sigma = 0;
    # input: encoder_decoder, an embedding of the time added to those of the tokens
    time: str = choice("auto", "none", "adaln", "constant", "input")
    # for kind=lm: rotary angles, or GPT-2's, a learned vector for each of max_length positions
    positions: str = choice("rotary", "learned")
    max_length: int = number(256, low=2)  # with a source: of positions, and of target lengths
    cond_width: int = number(128, low=1)  # of the time embedding; of adaLN blocks
    norm_bias: bool = True  # RADD has a bias in its LayerNorms, SEDD and MDLM have none
    attention_bias: bool = False  # GPT-2 has biases in its attention, the others have none
    tied_head: bool = False
    # for kind=lm: token i is predicted at the position of token i - 1, as by a network of the
    # objective "ar", from whose weights it can start (train.init_from)
    shift: bool = False
    dropout: float = number(0.0, low=0, high=0.99)
    compute_dtype: str = choice("float32", "bfloat16", "float64")  # parameters stay float32
    # of the gradients of matrices as their matmuls give them, and so of their sums over devices
    gradient_dtype: str = choice("float32", "bfloat16")
    # models/attention.py
    attention: str = choice("auto", "plain", "frugal", "xla", "cudnn", "splash")
    remat: str = choice("none", "dots", "full")  # what the backward pass recomputes


@dataclass(frozen=True)
class ProcessConfig:
    """The forward process; "auto" is the objective's, empty options take the process's defaults."""

    name: str = "auto"
    steps: int | None = number(None, low=1)  # T of the discrete-time ones
    p_uniform: float | None = number(None, low=0, high=0.99)  # hybrid: share of redrawn tokens
    neighbours: int | None = number(None, low=1)  # d3pm_nearest
    embedding: str | None = None  # d3pm_nearest: .npy file, float[V, D]


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule; "auto" is the process's, empty options take the schedule's defaults."""

    name: str = "auto"
    eps: float | None = number(None, low=0, high=0.5)
    sigma_min: float | None = number(None, low=0)
    sigma_max: float | None = number(None, low=0)
    k: float | None = number(None, low=0)  # exponent of the polynomial schedule


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training objective; empty options take the objective's defaults where it has them."""

    name: str = "radd_t_dce"
    steps: int | None = number(None, low=0)  # mdlm, md4: T of a bound in T steps, 0: continuous
    importance: bool | None = None  # mdlm: times drawn in proportion to their weight
    scale_by_sigma: bool | None = None  # sedd: what the network's output is divided by
    ce_weight: float | None = number(None, low=0)  # d3pm: lambda of L_vb + lambda CE
    block_size: int | None = number(None, low=1)  # bd3lm
    clip_low: float | None = number(None, low=0, high=1)  # bd3lm: mask ratios in training
    clip_high: float | None = number(None, low=0, high=1)
    # gidd: elbo, clamped, dynamic; rdm: linear, reciprocal, none
    weighting: str | None = choice(
        None, "elbo", "clamped", "dynamic", "linear", "reciprocal", "none"
    )
    q_sample: str | None = choice(None, "default", "multi_step", "multi_sample", "coupled")  # rdm
    label_smoothing: float | None = number(None, low=0, high=0.99)  # rdm
    length_weight: float = number(0.1, low=0)  # of the cross entropy of a target's length
    power: float | None = number(None, low=1e-3)  # genmd4: w of alpha = 1 - t^w before training


@dataclass(frozen=True)
class DataConfig:
    """The text, how it is split into tokens and blocks, and where prepared sets are kept."""

    source: str = "embedded"
    tokenizer: str = "sentencepiece:2048"
    length: int = number(1024, low=2)
    pack: str = choice("wrap", "pad")
    root: str = "~/.cache/ddm_jax"
    validation_fraction: float = number(0.04, low=0, high=0.5)
    test_fraction: float = number(0.04, low=0, high=0.5)
    workers: int = number(0, low=0)  # loader processes; 0 loads in a thread
    # of pairs, where `length` is the longest target, its EOS included
    validation: str = ""  # held-out pairs, named like `source`; empty: a fraction of these
    test: str = ""
    source_length: int = number(256, low=2)  # of the longest source, its EOS included
    buckets: int = number(3, low=1, high=8)  # number of batch shapes, each twice the last
    eos: str = choice("auto", "given", "predicted")  # whether a target's EOS is noised and learned


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up, clipping and an exponential moving average."""

    lr: float = number(3e-4, low=0)
    warmup_steps: int = number(2_500, low=0)
    # after the warm-up; cosine and linear fall to 0 at train.steps
    decay: str = choice("constant", "cosine", "linear", "inverse_sqrt")
    b1: float = number(0.9, low=0, high=1)
    b2: float = number(0.999, low=0, high=1)
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)  # of matrices and embeddings only
    clip: float = number(1.0, low=0)  # global gradient norm; 0: none
    ema_decay: float = number(0.9999, low=0, high=1)


@dataclass(frozen=True)
class TrainConfig:
    """Length of training, batch, checkpoints and logs."""

    steps: int = number(400_000, low=1)
    batch_size: int = number(512, low=1)  # sequences, over all devices and processes
    microbatches: int = number(1, low=1)
    init_from: str = ""  # workdir of a run, or converted weights, to start from; empty: none
    times: str = choice("stratified", "antithetic", "independent")  # over the global batch
    log_every: int = number(100, low=1)
    checkpoint_every: int = number(2_500, low=1)
    checkpoints: str = ""  # their folder, gs:// and s3:// too; empty: in the work directory
    keep_last: int = number(2, low=1)
    keep_every: int = number(50_000, low=1)  # checkpoints at its multiples are never deleted
    max_bad_steps: int = number(20, low=1)  # non-finite updates in a row before the run stops
    wandb_project: str = ""  # empty: no wandb
    profile: int = number(0, low=0)  # number of steps to trace into the work directory


@dataclass(frozen=True)
class EvalConfig:
    """Validation while training."""

    every: int = number(5_000, low=1)
    estimator: str = "auto"  # the objective that bounds the likelihood
    batch_size: int = number(64, low=1)
    sequences: int = number(512, low=2)  # held-out blocks used
    draws: int = number(4, low=1)  # corruptions of each block
    translations: int = number(128, low=1)  # of pairs: number that BLEU is measured on


@dataclass(frozen=True)
class SamplerConfig:
    """Text samples while training; empty options take the sampler's defaults where it has them."""

    name: str = "auto"
    steps: int = number(128, low=1)
    num: int = number(3, low=1)
    temperature: float = number(1.0, low=0)  # 0 takes the best token
    lengths: int = number(1, low=1)  # of a target: number of most likely lengths to try
    candidates: int = number(1, low=1)  # of a target: number drawn at each length
    selection: str = choice("score", "mbr")  # of the candidates
    order: str | None = None  # ordered: left, right, random or positions, "2,0,1"
    gamma: float | None = number(None, low=0)  # entropy: nats of a step
    routing: str | None = choice(None, "uncond", "cond", "default")  # rdm
    cutoff: str | None = choice(None, "linear", "cosine")  # rdm: how many positions stay noise
    noise_scale: float | None = number(None, low=0)  # rdm: of the noise on the scores
    strategy: str | None = choice(None, "cap", "rescale")  # remdm
    eta: float | None = number(None, low=0, high=1)  # remdm: how much is masked again
    kappa: float | None = number(None, low=0, high=1)  # predictor_corrector: share of ancestral


@dataclass(frozen=True)
class LayoutConfig:
    """How a run is laid out on devices: a row of parallel/layouts.py."""

    name: str = "dp"
    axes: str = ""  # sizes of the mesh's axes, "fsdp=16,model=4"; the others follow


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = number(0, low=0, high=2**31 - 1)
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

    Raises:
      UserError: an unknown field, a wrong type, a value out of range, or fields that contradict
        each other.
    """
    resolved: Config = from_mapping(Config, config.to_dict(), "config")
    _check_together(resolved)
    return resolved


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
