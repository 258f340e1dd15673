"""Samples from a trained run: python -m ddm_jax.sample --workdir=work/radd_tiny --num=4.

It reads the newest checkpoint, whether the run has ended or not, and changes nothing but to add a
file of samples. What is fixed in every sequence: see generation/prompts.py.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from ddm_jax import cli, run_flags
from ddm_jax.config import Config
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.generation.generate import compile_sampler, draw_batches
from ddm_jax.generation.prompts import Prompt, between, from_template, read_template
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.files import write_new
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.progress import ProgressBar, say
from ddm_jax.runs.record import read_record
from ddm_jax.runs.run import open_run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    run_flags.define_flags()
    flags.DEFINE_integer("num", 4, "sequences to draw")
    flags.DEFINE_integer("length", None, "tokens of a sequence; the run's by default")
    flags.DEFINE_string("prefix", "", "text at the start of every sequence")
    flags.DEFINE_string("suffix", "", "text at the end of every sequence")
    flags.DEFINE_string(
        "template", "", "text file with blanks: {{5}} for five tokens, {{}} for all that are left"
    )
    flags.DEFINE_float(
        "temperature", None, "of the draws; 0 takes the best token; the run's by default"
    )
    flags.DEFINE_integer("top_k", 0, "draw from so many best tokens; 0: from all")
    flags.DEFINE_float("top_p", 1.0, "draw from the best tokens of this total probability")
    flags.DEFINE_string("out", "", "JSONL file to make; one in WORKDIR/samples by default")


_RANGES = {
    "num": run_flags.POSITIVE,
    "temperature": run_flags.TEMPERATURE,
    "top_k": run_flags.NATURAL,
    "top_p": (lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
}


def main(argv: Sequence[str]) -> None:
    """Draws, writes and prints the samples.

    Raises:
      UserError: a bad flag, or a run that cannot be sampled from.
    """
    del argv
    workdir, num = run_flags.check(_RANGES), FLAGS.num
    if FLAGS.template and (FLAGS.prefix or FLAGS.suffix):
        raise UserError(
            "--template does not go with --prefix or --suffix: write them into the template."
        )
    # all that can be wrong in the flags is found before weights are read, which may take minutes
    config, tokenizer = read_record(workdir)
    config = run_flags.sampling_request().apply_to(config, FLAGS.length)
    if config.model.kind != "lm":
        raise UserError(
            f"The run in {workdir} writes targets of sources: use `python -m ddm_jax.translate`."
        )
    name, steps, length = config.sampler.name, config.sampler.steps, config.data.length
    temperature = FLAGS.temperature
    if temperature is None:
        temperature = config.sampler.temperature
    config = dataclasses.replace(
        config, sampler=dataclasses.replace(config.sampler, temperature=temperature)
    )
    prompt, texts = _read_prompt(tokenizer, length)
    batch_size = min(FLAGS.batch_size or 16, num)
    layout = dp(jax.local_devices()[: math.gcd(batch_size, jax.local_device_count())])
    run = open_run(workdir, FLAGS.weights, layout)
    out = workdir / "samples" / f"{run.step:08d}-{name}-{steps}.jsonl"
    out = Path(FLAGS.out).expanduser() if FLAGS.out else out
    _check_out(out)

    say(
        f"Step {run.step} of {workdir}: {num} sequences of {length} tokens, {name} sampler, "
        f"{steps} steps"
    )
    sampler = compile_sampler(
        dataclasses.replace(run, config=config), layout, batch_size, FLAGS.top_k, FLAGS.top_p
    )
    say(f"Compiled the sampler in {sampler.compile_s:.1f} s")

    samples: list[dict[str, Any]] = []
    drawn, total_s = int((~prompt.fixed).sum()), 0.0
    with Interrupt() as interrupt, ProgressBar(num) as progress:
        for batch in draw_batches(sampler, prompt, num, FLAGS.seed):
            total_s += batch.seconds
            for row, nfe in zip(batch.tokens, batch.nfe, strict=True):
                sample = {"text": tokenizer.decode(row), "tokens": row.tolist()}
                samples.append(sample | {"nfe": int(nfe), "seconds": batch.seconds / batch_size})
            rate = drawn * len(samples) / total_s
            progress.update(
                len(samples), f"{mean_nfe(samples):.1f} evaluations each, {rate:,.0f} tokens/s"
            )
            if interrupt.received:
                break

    settings = {
        "workdir": str(workdir),
        "checkpoint": run.step,
        "weights": FLAGS.weights,
        "sampler": name,
        "steps": steps,
        "options": _options_of(config),
        "temperature": temperature,
        **{f: FLAGS[f].value for f in ("top_k", "top_p", "seed")},
        "batch_size": batch_size,
        "length": length,
        "prompt": texts,
    }
    written = write_new(out, "".join(json.dumps(s | settings) + "\n" for s in samples))
    print(report(samples, written))
    if FLAGS.json:
        result = {
            "out": str(written),
            "num": len(samples),
            "nfe": mean_nfe(samples),
            "seconds": total_s,
            "tokens_per_s": len(samples) * drawn / total_s,
            "compile_s": sampler.compile_s,
        }
        print(json.dumps(result | settings))


def report(samples: Sequence[Mapping[str, Any]], written: Path) -> str:
    """The texts, and where they are."""
    lines = []
    for i, sample in enumerate(samples):
        lines += [
            f"--- sample {i + 1}: {sample['nfe']} network evaluations, {sample['seconds']:.3g} s",
            sample["text"],
            "",
        ]
    count = f"{len(samples)} sample{'s' * (len(samples) > 1)}"
    return "\n".join([*lines, f"Wrote {count} to {written}"])


def mean_nfe(samples: Sequence[Mapping[str, Any]]) -> float:
    """Network evaluations of a sequence, on average."""
    return sum(sample["nfe"] for sample in samples) / len(samples)


def _read_prompt(tokenizer: Tokenizer, length: int) -> tuple[Prompt, dict[str, str]]:
    """The prompt of the flags, and the texts that it is made of."""
    if not FLAGS.template:
        texts = {"prefix": FLAGS.prefix, "suffix": FLAGS.suffix}
        return between(**texts, tokenizer=tokenizer, length=length), texts
    template = read_template(Path(FLAGS.template).expanduser())
    return from_template(template, tokenizer, length), {"template": template}


def _options_of(config: Config) -> dict[str, Any]:
    fields = [f.name for f in dataclasses.fields(config.sampler) if f.default is None]
    values = {name: getattr(config.sampler, name) for name in fields}
    return {name: x for name, x in values.items() if x is not None}


def _check_out(out: Path) -> None:
    """Finds out before the samples are drawn whether they can be written."""
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: give the name of a file in it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(out.parent, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(f"{out} cannot be written ({reason}): give another file with --out.")


if __name__ == "__main__":
    cli.run(main, define_flags)
