r"""Draws texts from a trained run.

    python -m ddm_jax.sample --workdir=work/radd_tiny --num=4
    python -m ddm_jax.sample --workdir=work/radd_tiny --sampler=confidence --steps=32 \
        --temperature=0.8 --prefix='To the Congress' --suffix=' Thank you.'

It reads the newest checkpoint, whether the run has ended or not, and changes nothing but to add a
file of samples. docs/samplers.md describes the samplers.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ddm_jax import cli, run_flags
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.generation.generate import CompiledSampler, draw_batches
from ddm_jax.generation.prompts import read_template
from ddm_jax.generation.request import sampler_options
from ddm_jax.generation.text import Plan, TextRequest, plan_text
from ddm_jax.runs.files import write_new
from ddm_jax.runs.interrupt import Interrupt, exit_code
from ddm_jax.runs.progress import ProgressBar, say
from ddm_jax.runs.record import read_record
from ddm_jax.runs.run import Run, open_run
from ddm_jax.wording import counted, printable

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    run_flags.define_flags()
    with cli.group("Sampling"):
        flags.DEFINE_integer("num", 4, "sequences to draw")
        flags.DEFINE_float(
            "temperature", None, "of the draws; 0 takes the best token; the run's by default"
        )
        flags.DEFINE_integer("top_k", 0, "draw from the best N tokens only; 0: from all tokens")
        flags.DEFINE_float("top_p", 1.0, "draw from the best tokens of this total probability")
    with cli.group("Text"):
        flags.DEFINE_integer("length", None, "tokens of a sequence; the run's by default")
        flags.DEFINE_string("prefix", "", "text at the start of every sequence")
        flags.DEFINE_string("suffix", "", "text at the end of every sequence")
        flags.DEFINE_string(
            "template",
            "",
            "text file with blanks: {{5}} for five tokens, {{}} for all that are left",
        )
    with cli.group("Output"):
        flags.DEFINE_string("out", "", "JSONL file to make; one in WORKDIR/samples by default")


def main(argv: Sequence[str]) -> int:
    """Draws, writes and prints the samples.

    Returns:
      The exit code: 0, or that of the signal that stopped it before the last sample.

    Raises:
      UserError: a bad flag, or a run that cannot be sampled from.
    """
    del argv
    workdir = run_flags.check()
    request = _request()
    # all that can be wrong in the flags is found before weights are read, which may take minutes
    config, tokenizer = read_record(workdir)
    plan = plan_text(config, tokenizer, request)
    run = open_run(workdir, FLAGS.weights, plan.layout)
    sampler_config, length = plan.config.sampler, plan.config.data.length
    out = workdir / "samples" / f"{run.step:08d}-{sampler_config.name}-{sampler_config.steps}.jsonl"
    out = Path(FLAGS.out).expanduser() if FLAGS.out else out
    _check_out(out)
    say(
        f"Step {run.step} of {workdir}: {counted(request.num, 'sequence')} of "
        f"{counted(length, 'token')}, {sampler_config.name} sampler, "
        f"{counted(sampler_config.steps, 'step')}"
    )
    say("Compiling the sampler ...")
    sampler = plan.compile_for(run)
    say(f"Compiled the sampler in {sampler.compile_s:.1f} s")
    samples, seconds = _draw(sampler, plan, tokenizer)
    settings = _settings(run, plan)
    written = write_new(out, "".join(json.dumps(s | settings) + "\n" for s in samples))
    print(report(samples, written))
    if FLAGS.json:
        result = {
            "out": str(written),
            "num": len(samples),
            "nfe": mean_nfe(samples),
            "seconds": seconds,
            "tokens_per_s": len(samples) * plan.prompt.free / seconds,
            "compile_s": sampler.compile_s,
        }
        print(json.dumps(result | settings))
    return exit_code() if len(samples) < request.num else 0


def _request() -> TextRequest:
    template = read_template(Path(FLAGS.template).expanduser()) if FLAGS.template else ""
    return TextRequest(
        num=FLAGS.num,
        length=FLAGS.length,
        prefix=FLAGS.prefix,
        suffix=FLAGS.suffix,
        template=template,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        sampling=run_flags.sampling_request(),
    )


def _draw(
    sampler: CompiledSampler, plan: Plan, tokenizer: Tokenizer
) -> tuple[list[dict[str, Any]], float]:
    """(samples, seconds of drawing); after Ctrl-C the samples of the batches that are complete."""
    samples: list[dict[str, Any]] = []
    seconds, num = 0.0, plan.request.num
    with Interrupt() as interrupt, ProgressBar(num) as progress:
        for batch in draw_batches(sampler, plan.prompt, num, plan.request.sampling.seed):
            seconds += batch.seconds
            samples += batch.lines(tokenizer, plan.batch_size)
            rate = plan.prompt.free * len(samples) / seconds
            progress.update(
                len(samples), f"{mean_nfe(samples):.1f} evaluations each, {rate:,.0f} tokens/s"
            )
            if interrupt.received:
                break
    return samples, seconds


def _settings(run: Run, plan: Plan) -> dict[str, Any]:
    """All that decides the samples, for the record."""
    request, sampler = plan.request, plan.config.sampler
    prompt = {"prefix": request.prefix, "suffix": request.suffix}
    return {
        "workdir": str(run.workdir),
        "checkpoint": run.step,
        "weights": run.weights,
        "sampler": sampler.name,
        "steps": sampler.steps,
        "options": sampler_options(sampler),
        "temperature": sampler.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "seed": request.sampling.seed,
        "batch_size": plan.batch_size,
        "length": plan.config.data.length,
        "prompt": {"template": request.template} if request.template else prompt,
    }


def report(samples: Sequence[Mapping[str, Any]], written: Path) -> str:
    """The texts, and where they are."""
    lines = []
    for i, sample in enumerate(samples):
        lines += [
            f"--- sample {i + 1}: {counted(sample['nfe'], 'network evaluation')}, "
            f"{sample['seconds']:.3g} s",
            printable(sample["text"]),
            "",
        ]
    return "\n".join([*lines, f"Wrote {counted(len(samples), 'sample')} to {written}"])


def mean_nfe(samples: Sequence[Mapping[str, Any]]) -> float:
    """Network evaluations of a sequence, on average."""
    return sum(sample["nfe"] for sample in samples) / len(samples)


def _check_out(out: Path) -> None:
    """Finds out before the samples are drawn whether they can be written."""
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: give the name of a file in it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(out.parent, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise UserError(f"{out} cannot be written ({reason}): give another file with --out.")


if __name__ == "__main__":
    cli.run(main, define_flags)
