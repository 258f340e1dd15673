"""The likelihood of text under a trained run, for ddm_jax.evaluate."""

import dataclasses
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ddm_jax.config import Config
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood import estimators
from ddm_jax.evaluation.likelihood.corpora import DATA_ROOT, Corpus, open_corpus, own_split
from ddm_jax.evaluation.likelihood.estimators import Estimator
from ddm_jax.evaluation.likelihood.kept import PartialResults
from ddm_jax.evaluation.likelihood.monte_carlo import make_groups, mean
from ddm_jax.evaluation.likelihood.report import identity, result, settings, to_json
from ddm_jax.parallel.layouts import Layout, dp
from ddm_jax.runs.files import write_new
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.run import Run, open_run


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate, as the flags of ddm_jax.evaluate say it.

    dataset: see `open_corpus`; "" is the run's own split. num: of the first blocks; None: all.
    weights, seed, batch_size: see run_flags; None for the batch size is the run's own.
    """

    dataset: str = ""
    protocol: str = ""
    split: str | None = None
    num: int | None = None
    data_root: str = DATA_ROOT
    documents: str = "file"
    estimator: str = "auto"
    draws: int = estimators.DRAWS
    time_steps: int | None = None
    weights: str = "ema"
    seed: int = 0
    batch_size: int | None = None


def measure(
    workdir: Path, config: Config, tokenizer: Tokenizer, request: Request
) -> dict[str, Any] | None:
    """The report, which is also written to WORKDIR/evaluation/; None where it was interrupted.

    Args:
      workdir, config, tokenizer: of the run; nothing in it is changed.
      request: what to evaluate.

    Raises:
      UserError: see `estimators.choose`, `open_corpus` and `open_run`.
    """
    estimator = estimators.choose(config, request.estimator, request.draws, request.time_steps)
    corpus = _corpus(config, tokenizer, request)
    # one device more than there are sequences would have nothing to do
    size = min(request.batch_size or config.eval.batch_size, len(corpus.blocks.tokens))
    layout = dp(jax.local_devices()[: math.gcd(size, jax.local_device_count())])
    run = open_run(workdir, layout, request.weights)
    _say(
        f"Step {run.step} of {workdir}: {estimator.name} ({estimator.estimates}) of "
        f"{len(corpus.blocks.tokens)} blocks of {corpus.name} ({corpus.split}), "
        f"{estimator.draws} draws each"
    )
    decided = identity(run, request.weights, corpus, estimator, request.seed)
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    key = hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:8]
    stem = f"{run.step:08d}-{estimator.name}-{_word(corpus)}-{key}"
    kept = PartialResults(folder / f"{stem}.batches.jsonl", decided, estimator.groups)
    begin = time.perf_counter()
    before = len(kept)
    _run(run, estimator, corpus, layout, size, request.seed, kept)
    if len(kept) < len(corpus.blocks.tokens):
        print(
            f"Stopped after {len(kept)} of {len(corpus.blocks.tokens)} sequences, which are kept: "
            "the same command goes on."
        )
        return None
    found = mean(kept.nats, kept.tokens)
    report = to_json(
        {
            "workdir": str(workdir),
            **result(found, corpus, estimator),
            **decided,
            **settings(run, corpus, estimator),
            "batch_size": size,
            "seconds": time.perf_counter() - begin,
            "sequences_from_before": before,
        }
    )
    out = write_new(folder / f"{stem}.json", json.dumps(report, indent=2) + "\n")
    return report | {"out": str(out)}


def _corpus(config: Config, tokenizer: Tokenizer, request: Request) -> Corpus:
    if request.dataset:
        corpus = open_corpus(
            request.dataset,
            request.protocol,
            request.split,
            config,
            tokenizer,
            request.data_root,
            request.documents,
        )
        return corpus.first(request.num)
    if request.protocol:
        raise UserError(
            f"--protocol={request.protocol} needs a text: give --dataset=NAME of one of its sets, "
            "or a path."
        )
    return own_split(config, tokenizer, request.split or "test", request.num)


def _run(
    run: Run,
    estimator: Estimator,
    corpus: Corpus,
    layout: Layout,
    size: int,
    seed: int,
    kept: PartialResults,
) -> None:
    """Adds what is missing to `kept`, batch by batch, until all is there or Ctrl-C."""
    grouped = jax.jit(
        make_groups(run.network, estimator.loss, run.process, estimator.draws, estimator.groups)
    )
    tokens, valid = corpus.blocks.tokens, corpus.blocks.valid
    with Interrupt() as interrupt, _Progress(len(tokens), len(kept)) as progress:
        while len(kept) < len(tokens) and not interrupt.received:
            first, last = len(kept), min(len(kept) + size, len(tokens))
            # the last batch is filled with blocks of no token, so that there is one program
            filled = ((0, size - (last - first)), (0, 0))
            rows = {"tokens": tokens[first:last], "valid": valid[first:last]}
            rows = layout.put_batch({k: np.pad(x, filled) for k, x in rows.items()})
            index = jnp.arange(first, first + size)
            nats, counts = jax.device_get(grouped(run.params, rows, index, seed))
            kept.append(nats[: last - first], counts[: last - first])
            progress.show(len(kept), mean(kept.nats, kept.tokens))


class _Progress:
    """A bar in a terminal, a line for each tenth elsewhere: running nats per token, time left."""

    def __init__(self, total: int, done: int):
        self._total, self._begin, self._first, self._said = total, time.perf_counter(), done, done
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not sys.stderr.isatty(),
            unit="sequence",
            dynamic_ncols=True,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def show(self, done: int, found: Any) -> None:
        """After so many sequences."""
        numbers = f"{found.nll:.4f} +- {found.stderr:.4f} nats per token"
        if not self._bar.disable:
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done - self._said >= self._total / 10 or done == self._total:
            self._said = done
            seconds = time.perf_counter() - self._begin
            left = (self._total - done) * seconds / (done - self._first)
            _say(f"{done}/{self._total} sequences  {numbers}  {tqdm.format_interval(left)} left")


def _word(corpus: Corpus) -> str:
    """The text's name as part of a file's."""
    name = "own" if corpus.own else Path(corpus.name.partition(":")[2] or corpus.name).stem
    protocol = "" if corpus.own or not corpus.protocol.sets else f"{corpus.protocol_name}_"
    return f"{protocol}{''.join(c if c.isalnum() else '_' for c in name)[:40]}_{corpus.split}"


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
