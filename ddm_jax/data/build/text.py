"""Text source -> prepared set of packed tokens."""

import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from ddm_jax.data.build.atomic_folder import (
    check_free,
    check_reusable,
    publish,
    temporary_sibling,
)
from ddm_jax.data.build.packing import PACKERS
from ddm_jax.data.build.plan import TRAINS_TOKENIZER, announce, check_asked
from ddm_jax.data.build.tokenise_shards import (
    BeamSpec,
    Rules,
    ShardJob,
    SplitTokens,
    TokenFileInfo,
    gather,
    list_jobs,
    tokenise,
    unigram_counts,
)
from ddm_jax.data.sets.folder import COUNTS, is_prepared
from ddm_jax.data.sets.kinds import open_folder
from ddm_jax.data.sets.text import PreparedText, TextSpec, TextSplitInfo
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.sources.registry import Source
from ddm_jax.data.sources.shards import Shard
from ddm_jax.data.splits import SPLITS, HeldOut, split_of, without_own_splits
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.progress import ProgressBar, say


def prepare_text(
    spec: TextSpec,
    out: Path,
    *,
    workers: int | None = None,
    beam: BeamSpec | None = None,
    progress: bool = True,
) -> PreparedText:
    """Prepares a spec in the folder `out`, or opens the set that is already there.

    Args:
      spec: what to prepare.
      out: folder to make; it appears when the set is finished, and not before.
      workers: threads that tokenise; all cores by default. The result does not depend on it.
      beam: tokenise and write with Apache Beam instead. The result is the same.
      progress: whether to say on stderr what is done and how far it is.

    Raises:
      UserError: bad spec or text, `out` holds something else, or a split that the spec asks for
        would be empty.
    """
    _check(spec)
    out = out.expanduser()
    spec = spec.absolute()
    if is_prepared(out):
        finished = open_folder(out)
        check_reusable(finished, spec)
        assert isinstance(finished, PreparedText)  # the specs are equal
        return finished
    check_free(out)
    if progress:
        announce(spec, {field: sources.paths(s, field) for field, s in spec.named.items()}, out)
    from ddm_jax.data.build import tfds_builder  # slow to import

    source, stamp = spec.open_source(), spec.stamp()
    fractions = HeldOut(spec.validation_fraction, spec.test_fraction)
    held_out = without_own_splits(fractions, source.shards)
    with temporary_sibling(out) as scratch:
        documents = functools.partial(_train_documents, source, held_out, progress)
        tokenizer = tokenizers.make(spec.tokenizer, documents)
        rules = Rules(tokenizer, held_out, spec.length, spec.pack)
        fingerprint, infos, streams = _tokenise(source, rules, scratch, workers, beam, progress)
        _check_blocks(spec, streams)
        built = tfds_builder.build(
            {split: stream for split, stream in streams.items() if stream.blocks},
            scratch,
            beam=beam,
            progress=progress,
        )
        counts = np.stack(
            [unigram_counts(streams[split], tokenizer.vocab_size) for split in SPLITS]
        )
        np.save(built / COUNTS, counts)
        tokenizer.save(built)
        prepared = PreparedText(
            folder=out,
            spec=spec,
            source_fingerprint=fingerprint,
            source_stamp=stamp,
            tokenizer=tokenizer,
            splits=_split_infos(infos, streams, counts),
        )
        publish(built, out, prepared.description())
    return prepared


def _check(spec: TextSpec) -> None:
    if spec.pack not in PACKERS:
        raise UserError(f"data.pack={spec.pack!r} must be one of {', '.join(PACKERS)}.")
    if spec.length < 1:
        raise UserError(f"data.length={spec.length} must be at least 1 token.")
    for field, named in spec.named.items():
        sources.split_spec(named, field)
    tokenizers.split_spec(spec.tokenizer)


def _check_blocks(spec: TextSpec, streams: Mapping[str, SplitTokens]) -> None:
    """Refuses a set without a block of a split that the spec asks for."""
    for split, stream in streams.items():
        if stream.blocks:
            continue
        if split == "train":
            raise UserError(
                f"data.source={spec.source} gives {stream.total} tokens to train on, fewer than "
                f"one block of data.length={spec.length}: add text, lower data.length, or lower "
                "the held-out fractions."
            )
        got = f"{stream.total} tokens, fewer than one block of data.length={spec.length}"
        check_asked(spec, split, got, "lower data.length")


def _train_documents(source: Source, held_out: HeldOut, progress: bool) -> Iterator[str]:
    """Yields the documents that the tokenizer may be trained on: nothing that is held out."""
    with _Meter(source.shards["train"], "read for the tokenizer", progress) as meter:
        for index, shard in enumerate(source.shards["train"]):
            for text in shard.read():
                meter.add(index, len(text))
                if split_of(text, held_out) == "train":
                    yield text
            meter.finish(index)
    if progress:
        say(TRAINS_TOKENIZER)


def _tokenise(
    source: Source,
    rules: Rules,
    scratch: Path,
    workers: int | None,
    beam: BeamSpec | None,
    progress: bool,
) -> tuple[str, dict[str, list[TokenFileInfo]], dict[str, SplitTokens]]:
    """Writes the token files of all shards; returns what `gather` returns."""
    from ddm_jax.data.build import tfds_builder  # slow to import

    folder = scratch / "token_files"
    folder.mkdir()
    jobs = list_jobs(source)
    if beam is None:
        _tokenise_in_threads(jobs, rules, folder, workers, progress)
    else:
        tfds_builder.tokenise_with_beam(jobs, rules, folder, beam)
    return gather(folder, len(jobs), rules)


def _tokenise_in_threads(
    jobs: list[ShardJob], rules: Rules, folder: Path, workers: int | None, progress: bool
) -> None:
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    with _Meter([job.shard for job in jobs], "tokenise", progress) as meter:
        try:
            tasks = {
                pool.submit(
                    tokenise, job, rules, folder, functools.partial(meter.add, job.index)
                ): job.index
                for job in jobs
            }
            for done in as_completed(tasks):
                done.result()
                meter.finish(tasks[done])
        finally:
            # After an error or Ctrl-C, jobs that have not started are cancelled.
            pool.shutdown(cancel_futures=True)


class _Meter:
    """Progress in bytes of input, which any thread may add to; of text if a size is unknown.

    A shard counts for its size, whatever it reads: it reads more than that if it has the beginning
    of a line that ends in later shards, or if its file is compressed inside, as Parquet is.
    """

    def __init__(self, shards: Sequence[Shard], label: str, progress: bool) -> None:
        self._left = [shard.size for shard in shards]
        self._known = all(self._left)
        total = sum(self._left) if self._known else 0
        self._bar = ProgressBar(total, unit="B", label=label, shown=progress)
        self._lock = threading.Lock()

    def __enter__(self) -> "_Meter":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def add(self, index: int, text_bytes: int) -> None:
        """Counts text that has been read of a shard."""
        with self._lock:
            if self._known:
                text_bytes = min(text_bytes, self._left[index])
                self._left[index] -= text_bytes
            self._bar.add(text_bytes)

    def finish(self, index: int) -> None:
        """Counts what is left of the size of a shard that has been read."""
        if self._known:
            self.add(index, self._left[index])


def _split_infos(
    infos: Mapping[str, list[TokenFileInfo]],
    streams: Mapping[str, SplitTokens],
    counts: np.ndarray,
) -> Mapping[str, TextSplitInfo]:
    splits = {}
    for split, tokens in zip(SPLITS, counts.sum(axis=1).tolist(), strict=True):
        files, stream = infos[split], streams[split]
        tail = stream.total - stream.blocks * stream.length
        kept_bytes = sum(file.kept_bytes for file in files)
        splits[split] = TextSplitInfo(
            blocks=stream.blocks,
            tokens=tokens,
            dropped_tokens=tail + sum(file.dropped for file in files),
            documents=sum(file.documents for file in files),
            bytes=sum(file.bytes for file in files),
            # The tail's text is in the numerator, so its tokens are in the denominator.
            bytes_per_token=kept_bytes / max(1, tokens + tail),
        )
    return splits
