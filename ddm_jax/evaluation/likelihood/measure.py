"""The likelihood of text under a trained run: for Python, and as a report for ddm_jax.evaluate."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.config import Config
from ddm_jax.costs.memory import lower_batch, out_of_memory
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood import estimators
from ddm_jax.evaluation.likelihood.corpora import (
    DATA_ROOT,
    Corpus,
    corpus_of_texts,
    open_corpus,
    own_split,
)
from ddm_jax.evaluation.likelihood.estimators import DRAWS, Estimator
from ddm_jax.evaluation.likelihood.monte_carlo import Likelihood, make_groups, mean
from ddm_jax.evaluation.likelihood.partial_results import PartialResults
from ddm_jax.evaluation.likelihood.report import as_likelihood, conditions, identity, numbers
from ddm_jax.evaluation.reports import short_hash, to_json, write_report
from ddm_jax.generation.request import RANGES, check_range
from ddm_jax.parallel.layouts import Layout, local_dp
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.progress import ProgressBar, say
from ddm_jax.runs.record import read_record
from ddm_jax.runs.run import Run, open_run
from ddm_jax.wording import counted


@dataclasses.dataclass(frozen=True)
class LikelihoodRequest:
    """The text to evaluate, and how.

    Attributes:
      dataset: see `open_corpus`; "" is the run's own prepared text.
      protocol: a name of PROTOCOLS; "" cuts text as the run cuts its own.
      split: of the text; None: test, or the protocol's.
      num: the number of blocks to evaluate, from the first; None: all.
      data_root: folder of the protocols' files.
      documents: what a document of a text file is; one of corpora.FORMS.
      estimator: the objective that estimates the likelihood; "auto" is the best one for the run.
      draws: corruptions of each block: 1, or an even number.
      time_steps: T of the bound in T steps, 0 for continuous time; None: as in training.
      weights: one of runs.run.WEIGHTS.
      seed: of the corruptions.
      batch_size: blocks evaluated at once; None: the run's config.eval.batch_size.
    """

    dataset: str = ""
    protocol: str = ""
    split: str | None = None
    num: int | None = None
    data_root: str = DATA_ROOT
    documents: str = "file"
    estimator: str = "auto"
    draws: int = DRAWS
    time_steps: int | None = None
    weights: str = "ema"
    seed: int = 0
    batch_size: int | None = None


def likelihood(
    run: Run,
    texts_or_dataset: Sequence[str] | str | Path | None = None,
    *,
    protocol: str = "",
    draws: int = DRAWS,
    split: str | None = None,
    num: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Likelihood:
    """The likelihood of text under a run, as `python -m ddm_jax.evaluate` estimates it.

    Nothing is written. The number is that of the command for the same text and arguments.

    Args:
      run: of a language model.
      texts_or_dataset: texts, each a document; or a name or path as --dataset of
        ddm_jax.evaluate takes it; None is the run's own prepared text.
      protocol: how published evaluations cut text (--protocol): "sedd", "mdlm" or "text8"; ""
        cuts it as the run cuts its own.
      draws: corruptions of each block: 1, or an even number.
      split: of a dataset; None: test, or the protocol's.
      num: the number of blocks to evaluate, from the first; None: all.
      batch_size: blocks evaluated at once; None: the run's config.eval.batch_size.
      seed: of the corruptions; the batch size and the devices do not change them.

    Returns:
      Nats per token, with the standard error over sequences, perplexity and bits per byte.

    Raises:
      UserError: the run translates pairs, an argument is out of range, the text does not exist,
        or it fills no block.
    """
    if run.config.model.kind != "lm":
        raise UserError(
            f"The run translates pairs (config.model.kind={run.config.model.kind!r}), and a "
            "likelihood is that of a language model's text: use `python -m ddm_jax.evaluate`."
        )
    for name, value in {"num": num, "batch_size": batch_size, "seed": seed}.items():
        check_range(name, value, RANGES[name])
    estimator = estimators.choose(run.config, "auto", draws)
    if texts_or_dataset is None or isinstance(texts_or_dataset, str | Path):
        dataset = str(texts_or_dataset or "")
        request = LikelihoodRequest(dataset=dataset, protocol=protocol, split=split, num=num)
        corpus = _corpus(run.config, run.tokenizer, request)
    elif split is not None:
        raise UserError(f"split={split!r} does not apply to a list of texts: leave it out.")
    else:
        corpus = corpus_of_texts(texts_or_dataset, run.config, run.tokenizer, protocol).first(num)
    size, layout = _placement(run.config, corpus, batch_size)
    run = dataclasses.replace(run, params=jax.device_put(run.params, layout.replicated))
    batches = list(_batches(run, estimator, corpus, layout, size, seed))
    nats, tokens = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return as_likelihood(mean(nats, tokens), corpus, estimator)


def measure_likelihood(workdir: Path, request: LikelihoodRequest) -> dict[str, Any] | None:
    """The report, which is also written to WORKDIR/evaluation/.

    Every batch is saved there as it is computed, and an interrupted evaluation resumes from it.

    Args:
      workdir: of the run, a language model; nothing in it is changed.
      request: the text, and how to evaluate it.

    Returns:
      The numbers, all that determined them, and `out`, the path of the report; None where Ctrl-C
      or SIGTERM came first.

    Raises:
      UserError: see `estimators.choose`, `open_corpus` and `open_run`.
    """
    config, tokenizer = read_record(workdir)
    estimator = estimators.choose(config, request.estimator, request.draws, request.time_steps)
    corpus = _corpus(config, tokenizer, request)
    size, layout = _placement(config, corpus, request.batch_size)
    run = open_run(workdir, request.weights, layout)
    total = len(corpus.blocks.tokens)
    say(
        f"Step {run.step} of {workdir}: {estimator.name} ({estimator.estimates}) of "
        f"{counted(total, 'block')} of {corpus.name} ({corpus.split}), "
        f"{counted(estimator.draws, 'draw')} each"
    )
    identified = identity(run, request.weights, corpus, estimator, request.seed)
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    stem = f"{run.step:08d}-{estimator.name}-{_word(corpus)}-{short_hash(identified)}"
    results = PartialResults(folder / f"{stem}.batches.jsonl", identified, estimator.groups)
    begin, before = time.perf_counter(), len(results)
    batches = _batches(run, estimator, corpus, layout, size, request.seed, start=before)
    _complete(results, batches, total)
    if len(results) < total:
        print(
            f"Stopped after {len(results)} of {counted(total, 'sequence')}, which are saved. Run "
            "the same command to resume."
        )
        return None
    report = {
        "workdir": str(workdir),
        **numbers(mean(results.nats, results.tokens), corpus, estimator),
        **identified,
        **conditions(run, corpus, estimator),
        "batch_size": size,
        "seconds": time.perf_counter() - begin,
        "sequences_from_before": before,
    }
    return write_report(folder, stem, to_json(report))


def _corpus(config: Config, tokenizer: Tokenizer, request: LikelihoodRequest) -> Corpus:
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


def _placement(config: Config, corpus: Corpus, batch_size: int | None) -> tuple[int, Layout]:
    """The number of blocks in a batch, and the devices over which they are split evenly."""
    size = min(batch_size or config.eval.batch_size, len(corpus.blocks.tokens))
    return size, local_dp(size)


def _batches(
    run: Run,
    estimator: Estimator,
    corpus: Corpus,
    layout: Layout,
    size: int,
    seed: int,
    start: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (nats float32[n, groups], tokens int32[n]) of the next n <= `size` blocks."""
    grouped = jax.jit(
        make_groups(run.network, estimator.loss, run.process, estimator.draws, estimator.groups)
    )
    tokens, valid = corpus.blocks.tokens, corpus.blocks.valid
    for first in range(start, len(tokens), size):
        last = min(first + size, len(tokens))
        # the last batch is filled with blocks without a token, so that one program serves all
        filled = ((0, size - (last - first)), (0, 0))
        rows = {"tokens": tokens[first:last], "valid": valid[first:last]}
        batch = layout.put_batch({k: np.pad(x, filled) for k, x in rows.items()})
        index = jnp.arange(first, first + size)
        with out_of_memory(f"A batch of {size} blocks", lambda: lower_batch(size)):
            nats, counts = jax.device_get(grouped(run.params, batch, index, seed))
        yield nats[: last - first], counts[: last - first]


def _complete(
    results: PartialResults, batches: Iterator[tuple[np.ndarray, np.ndarray]], total: int
) -> None:
    """Adds the batches that `results` does not have yet, up to the last one or a signal."""
    with Interrupt() as interrupt, ProgressBar(total, len(results)) as progress:
        for nats, tokens in batches:
            results.append(nats, tokens)
            found = mean(results.nats, results.tokens)
            progress.update(len(results), f"{found.nll:.4f} +- {found.stderr:.4f} nats per token")
            if interrupt.received:
                break


def _word(corpus: Corpus) -> str:
    """The text's name as part of a file's name."""
    name = "own" if corpus.own else Path(corpus.name.partition(":")[2] or corpus.name).stem
    protocol = "" if corpus.own or not corpus.protocol.sets else f"{corpus.protocol_name}_"
    return f"{protocol}{''.join(c if c.isalnum() else '_' for c in name)[:40]}_{corpus.split}"
