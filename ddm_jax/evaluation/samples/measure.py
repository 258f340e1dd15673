"""What a trained run writes, scored beside held-out text, for ddm_jax.evaluate."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax

from ddm_jax import run_flags
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.minilm import open_minilm
from ddm_jax.evaluation.judges.open import open_judge
from ddm_jax.evaluation.likelihood.corpora import Corpus, own_split
from ddm_jax.evaluation.reports import to_json
from ddm_jax.evaluation.samples.infilling import evaluate_infilling
from ddm_jax.evaluation.samples.unconditional import BATCH_SIZE, evaluate_samples, sample_table
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.files import write_new
from ddm_jax.runs.record import git_revision, versions
from ddm_jax.runs.run import open_run


@dataclasses.dataclass(frozen=True)
class Request:
    """What to draw, as the flags of ddm_jax.evaluate say it.

    samples: sequences drawn from nothing. infill: held-out blocks of `split` with spans taken out.
    Either may be 0. judge: see `open_judge`; "" for none. mauve: compare the samples with held-out
    text by MAUVE.
    """

    samples: int
    infill: int
    judge: str
    mauve: bool
    split: str


def measure(workdir: Path, request: Request) -> dict[str, Any] | None:
    """The report, also written to WORKDIR/evaluation/; None where it was interrupted.

    Returns:
      those of samples.evaluate_samples and infilling.evaluate_infilling that were asked for, as
      "drawn" and "infilling", and how they were made.

    Raises:
      UserError: no run, no held-out text, a flag does not fit the run, or no such judge.
    """
    if request.mauve and not request.samples:
        raise UserError("--mauve compares samples with held-out text: give --samples=N as well.")
    size = run_flags.FLAGS.batch_size or BATCH_SIZE
    layout = dp(jax.local_devices()[: math.gcd(size, jax.local_device_count())])
    run = open_run(workdir, run_flags.FLAGS.weights, layout)
    run = dataclasses.replace(run, config=run_flags.sampling_request().apply_to(run.config))
    held_out = own_split(
        run.config, run.tokenizer, request.split, max(request.samples, request.infill)
    )
    judge = open_judge(request.judge) if request.judge else None
    features = open_minilm() if request.mauve else None
    folder, seed = workdir / "evaluation", run_flags.FLAGS.seed
    folder.mkdir(exist_ok=True)
    report: dict[str, Any] = {"workdir": str(workdir), "checkpoint": run.step}
    if request.samples:
        texts = _texts(held_out.first(request.samples), run.tokenizer)
        drawn = evaluate_samples(
            run, layout, request.samples, None, judge, texts, seed, folder, features, size
        )
        if drawn is None:
            return None
        report["drawn"] = drawn
    if request.infill:
        blocks = held_out.first(request.infill).blocks
        whole = blocks.tokens[blocks.valid.all(axis=1)]
        if not len(whole):
            raise UserError(
                f"--infill={request.infill} needs blocks without padding, and the first of "
                f"{held_out.split} have some: use a run with config.data.pack='wrap'."
            )
        report["infilling"] = evaluate_infilling(
            run, layout, whole, None, judge, seed, batch_size=size
        )
    report |= {
        "weights": run_flags.FLAGS.weights,
        "sampler": {
            k: x for k, x in dataclasses.asdict(run.config.sampler).items() if x is not None
        },
        "seed": seed,
        "batch_size": size,
        "held_out": f"{held_out.split} of {held_out.name}",
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    report = to_json(report)
    stem = f"{run.step:08d}-samples-{run.config.sampler.name}-{run.config.sampler.steps}"
    out = write_new(folder / f"{stem}.json", json.dumps(report, indent=2) + "\n")
    return report | {"out": str(out)}


def tables(report: dict[str, Any]) -> str:
    """What `measure` found, to be read."""
    found = []
    if "drawn" in report:
        found.append(sample_table(report["drawn"]))
    if "infilling" in report:
        found += [f"{name:<20}  {x:.5g}" for name, x in report["infilling"].items()]
    return "\n".join(found)


def _texts(corpus: Corpus, tokenizer: Any) -> list[str]:
    rows = zip(corpus.blocks.tokens, corpus.blocks.valid, strict=True)
    return [tokenizer.decode(row[real]) for row, real in rows]
