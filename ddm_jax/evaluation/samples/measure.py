"""Samples and infilling of a trained run, as a report for ddm_jax.evaluate."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.minilm import open_minilm
from ddm_jax.evaluation.judges.open import open_judge
from ddm_jax.evaluation.likelihood.corpora import Corpus, own_split
from ddm_jax.evaluation.reports import environment, to_json, write_report
from ddm_jax.evaluation.samples.infilling import evaluate_infilling
from ddm_jax.evaluation.samples.quality import Quality, quality_table
from ddm_jax.evaluation.samples.unconditional import BATCH_SIZE, evaluate_samples
from ddm_jax.generation.request import SamplingRequest
from ddm_jax.parallel.layouts import local_dp
from ddm_jax.runs.run import open_run
from ddm_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class SamplesRequest:
    """What to draw from a run, and how to judge it.

    Attributes:
      samples: number of sequences to draw from nothing; may be 0.
      infill: number of held-out blocks in which spans are drawn again; may be 0.
      judge: see `open_judge`; "" for none.
      mauve: whether to compare the samples with held-out text by MAUVE.
      split: of the held-out text: "validation", "test" or "train".
      weights: one of runs.run.WEIGHTS.
      sampling: the sampler, its options, seed and batch size, which is 16 by default.
    """

    samples: int = 0
    infill: int = 0
    judge: str = ""
    mauve: bool = False
    split: str = "test"
    weights: str = "ema"
    sampling: SamplingRequest = dataclasses.field(default_factory=SamplingRequest)


def measure_samples(workdir: Path, request: SamplesRequest) -> dict[str, Any] | None:
    """The report, which is also written to WORKDIR/evaluation/.

    Args:
      workdir: of the run, a language model; nothing in it is changed.
      request: what to draw.

    Returns:
      What unconditional.evaluate_samples and infilling.evaluate_infilling return, as "drawn" and
      "infilling", if asked for; how they were made; and `out`, the path of the report. None where
      Ctrl-C or SIGTERM came first.

    Raises:
      UserError: there is no run, held-out text or such a judge, or the request does not fit.
    """
    if request.mauve and not request.samples:
        raise UserError("--mauve compares samples with held-out text: give --samples=N as well.")
    seed, size = request.sampling.seed, request.sampling.batch_size or BATCH_SIZE
    layout = local_dp(size)
    run = open_run(workdir, request.weights, layout)
    run = dataclasses.replace(run, config=request.sampling.apply_to(run.config))
    most = max(request.samples, request.infill)
    held_out = own_split(run.config, run.tokenizer, request.split, most)
    judge = open_judge(request.judge) if request.judge else None
    features = open_minilm() if request.mauve else None
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    report: dict[str, Any] = {"workdir": str(workdir), "checkpoint": run.step}
    if request.samples:
        texts = held_out.first(request.samples).texts(run.tokenizer)
        drawn = evaluate_samples(
            run, layout, request.samples, folder, judge, texts, features, seed, size
        )
        if drawn is None:
            return None
        report["drawn"] = drawn
    if request.infill:
        blocks = _whole_blocks(held_out, request.infill)
        report["infilling"] = evaluate_infilling(run, layout, blocks, judge, seed, batch_size=size)
    sampler = run.config.sampler
    report |= {
        "weights": request.weights,
        "sampler": {k: x for k, x in dataclasses.asdict(sampler).items() if x is not None},
        "seed": seed,
        "batch_size": size,
        "held_out": f"{held_out.split} of {held_out.name}",
        **environment(),
    }
    stem = f"{run.step:08d}-samples-{sampler.name}-{sampler.steps}"
    return write_report(folder, stem, to_json(report))


def format_samples(report: Mapping[str, Any]) -> str:
    """The numbers of a report of `measure_samples`, to be printed."""
    found = []
    if "drawn" in report:
        found.append(sample_table(report["drawn"]))
    if "infilling" in report:
        found += [f"{name:<20}  {x:.5g}" for name, x in report["infilling"].items()]
    return "\n".join(found)


def sample_table(drawn: Mapping[str, Any]) -> str:
    """The quality and the cost of the samples and of real text.

    drawn: what unconditional.evaluate_samples returned.
    """
    title = f"{drawn['sampler']}, {counted(drawn['steps'], 'step')}, NFE {drawn['nfe']:.1f}"
    rows: dict[str, Quality] = {title: drawn["samples"]}
    if "reference" in drawn:
        rows["real text"] = drawn["reference"]
    lines = [quality_table(rows)]
    if "mauve" in drawn:
        lines.append(f"\nMAUVE against the real text: {drawn['mauve']:.3f}")
    return "\n".join(lines)


def _whole_blocks(held_out: Corpus, count: int) -> np.ndarray:
    """Those of the first blocks that have no padding: int32[N, L]."""
    blocks = held_out.first(count).blocks
    whole = blocks.tokens[blocks.valid.all(axis=1)]
    if not len(whole):
        raise UserError(
            f"--infill={count} needs blocks without padding, and all of the first {count} of "
            f"{held_out.split} are padded: use a run with config.data.pack='wrap'."
        )
    return whole
