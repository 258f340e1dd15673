"""The samplers on a trained run: quality against network evaluations, and their texts.

    python -m benchmarks.quality --workdir=work/demo --judge=work/judge --picture=docs/samplers.png

Quality is the perplexity of the samples under an autoregressive run on the same text and tokenizer
(--judge, a folder that ddm_jax.main wrote with --config.objective.name=ar), together with the
entropy of the token counts of a sample, in nats: a low perplexity at a low entropy is repetition.
For comparison there are real text, the judge's own samples, and samples that `event_driven` draws
with Gumbel noise of low precision instead of ours. Prints a table and a text for each sampler.
"""

import functools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddm_jax import cli
from ddm_jax.config import Config
from ddm_jax.data.loading.loader import eval_batches
from ddm_jax.data.open import open_or_prepare
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import token_nats
from ddm_jax.evaluation.judges.open import judge_of
from ddm_jax.evaluation.samples.repetition import unigram_entropy
from ddm_jax.experiment import make_sampler
from ddm_jax.generation.generate import make_program, make_spec
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import Run, open_run, with_sampler
from ddm_jax.settle import fitting_samplers

NO_STEPS = ("first_hitting", "ordered", "entropy", "autoregressive")  # they ignore --steps

_WORKDIR = flags.DEFINE_string("workdir", "", "Run to sample from.")
_JUDGE = flags.DEFINE_string("judge", "", "Autoregressive run that scores the samples.")
_STEPS = flags.DEFINE_list("steps", ["4", "8", "16", "32", "64"], "Numbers of steps.")
_NUM = flags.DEFINE_integer("num", 128, "Sequences of each sampler and number of steps.")
_SAMPLERS = flags.DEFINE_list("samplers", [], "Samplers; all that fit the run if empty.")
_PICTURE = flags.DEFINE_string("picture", "", "PNG file to draw.")
_JSON = cli.define_json()


@dataclass(frozen=True)
class Row:
    """One sampler at one number of steps; means over sequences."""

    sampler: str
    steps: int
    nfe: float
    seconds: float  # per sequence
    nll: float  # nats per token under the judge
    entropy: float
    text: str


def main(argv: list[str]) -> None:
    """Prints the table and the texts, and draws the picture."""
    del argv
    layout = dp(jax.devices()[:1])
    run, judge = (open_run(w.value, layout=layout) for w in (_WORKDIR, _JUDGE))
    if run.tokenizer.fingerprint != judge.tokenizer.fingerprint:
        raise UserError(f"--judge={_JUDGE.value} has another tokenizer than {_WORKDIR.value}.")
    reader = judge_of(judge, _JUDGE.value)

    def nll(tokens: np.ndarray) -> float:
        """Nats per token under the judge of tokens as they were drawn, int[B, L]."""
        return float(np.concatenate(token_nats(reader, list(tokens))).mean())

    real = real_text(run.config)
    rows = [Row("real text", 0, 0, 0, nll(real), entropy(real), run.tokenizer.decode(real[0]))]
    rows += sampled(judge, ["autoregressive"], nll)
    config = run.config
    names = _SAMPLERS.value or fitting_samplers(
        OBJECTIVES[config.objective.name], config.process.name, config.model.time
    )
    print("| sampler | steps | NFE | ms per sequence | judge's perplexity | entropy, nats |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(as_line(row))
    for row in sampled(run, names, nll):
        rows.append(row)
        print(as_line(row), flush=True)
    for dtype in ("float32", "bfloat16"):
        with low_precision(dtype):
            for row in sampled(run, ["event_driven"], nll, f"event_driven, {dtype} Gumbels"):
                print(as_line(row), flush=True)
    for row in rows:
        print(f"\n**{title(row)}**\n\n> {' '.join(row.text.split())}")
    if _PICTURE.value:
        draw_picture(rows, Path(_PICTURE.value))
    if _JSON.value:
        print(json.dumps([row.__dict__ for row in rows]))


def sampled(run: Run, names: list[str], nll: Any, label: str = "") -> Iterator[Row]:
    """Samples of a run; each sampler is compiled once."""
    shape = (_NUM.value, run.config.data.length)
    prompt = jnp.zeros(shape, jnp.int32)
    for name in names:
        config = with_sampler(run.config, name)
        program = make_program(make_sampler(config), run.network.apply, run.process)
        given = (run.params, jax.random.key(0), prompt, prompt > 0)
        spec = make_spec(1, 1.0, 0, 1.0)
        program = program.lower(*given, spec=spec).compile()
        for steps in [shape[1]] if name in NO_STEPS else map(int, _STEPS.value):
            begin = time.perf_counter()
            tokens, stats = program(*given, spec=make_spec(steps, 1.0, 0, 1.0))
            tokens = np.asarray(tokens)
            seconds = (time.perf_counter() - begin) / len(tokens)
            nfe = float(np.mean(stats.nfe))
            text = run.tokenizer.decode(tokens[0])
            yield Row(label or name, steps, nfe, seconds, nll(tokens), entropy(tokens), text)


def low_precision(dtype: Any) -> Any:
    """Replaces diffusion/categorical.py by jax's own draw, to show what low precision does."""

    def categorical(keys: jax.Array, logits: jax.Array) -> jax.Array:
        draw = functools.partial(jax.random.categorical, axis=-1)
        for _ in range(keys.ndim):
            draw = jax.vmap(draw)
        return draw(keys, logits.astype(dtype))

    return mock.patch("ddm_jax.samplers.draw.categorical", categorical)


def real_text(config: Config) -> np.ndarray:
    """As many validation blocks as there are samples, int32[B, L]."""
    data = open_or_prepare(config.data)
    batches = eval_batches(data, "validation", batch_size=_NUM.value, limit=_NUM.value)
    return np.asarray(next(iter(batches))["tokens"])


def entropy(tokens: np.ndarray) -> float:
    """Entropy of the token counts of a sequence in nats, averaged over sequences, int[B, L]."""
    return float(np.mean([unigram_entropy(row) for row in tokens]))


def title(row: Row) -> str:
    """Sampler, steps and cost: the heading of a text."""
    if not row.steps:
        return row.sampler
    steps = "" if row.sampler in NO_STEPS else f", {row.steps} steps"
    return f"{row.sampler}{steps}: {row.nfe:.1f} evaluations, {1e3 * row.seconds:.0f} ms"


def as_line(row: Row) -> str:
    """A line of the table."""
    steps = "-" if not row.steps or row.sampler in NO_STEPS else row.steps
    nfe, ms = (f"{row.nfe:.1f}", f"{1e3 * row.seconds:.0f}") if row.steps else ("-", "-")
    ppl = math.exp(row.nll)
    return f"| {row.sampler} | {steps} | {nfe} | {ms} | {ppl:.0f} | {row.entropy:.2f} |"


def draw_picture(rows: list[Row], path: Path) -> None:
    """Perplexity and entropy against evaluations, a line for each sampler."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    values = (lambda row: math.exp(row.nll), lambda row: row.entropy)
    names = list(dict.fromkeys(row.sampler for row in rows if row.steps))
    for axis, value in zip(axes, values, strict=True):
        axis.axhline(value(rows[0]), color="black", linewidth=1, linestyle=":", label="real text")
        for i, name in enumerate(names):
            points = [(row.nfe, value(row)) for row in rows if row.sampler == name]
            style = {"color": plt.get_cmap("tab20")(i), "marker": "os"[len(points) == 1]}
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1, markersize=5, **style)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("network evaluations of a sequence")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("perplexity under the autoregressive judge")
    axes[1].set_ylabel("entropy of a sample's tokens (nats)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
