"""Text source -> prepared set of packed tokens."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddm_jax.data.build import tfds_builder
from ddm_jax.data.build.atomic_folder import (
    check_free,
    check_reusable,
    publish,
    temporary_sibling,
)
from ddm_jax.data.build.packing import PACKERS
from ddm_jax.data.build.tfds_builder import BeamSpec
from ddm_jax.data.build.tokenise_shards import (
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
from ddm_jax.data.sets.text_records import token_dtype
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.sources.registry import Source
from ddm_jax.data.splits import SPLITS, HeldOut, split_of, without_own_splits
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError


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
      progress: whether to show progress bars on stderr.

    Raises:
      UserError: bad spec or text, or `out` holds something else.
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
    source, stamp = sources.open_source(spec.source), spec.stamp()
    fractions = HeldOut(spec.validation_fraction, spec.test_fraction)
    held_out = without_own_splits(fractions, source.shards)
    with temporary_sibling(out) as scratch:
        tokenizer = tokenizers.make(spec.tokenizer, lambda: _train_documents(source, held_out))
        rules = Rules(tokenizer, held_out, spec.length, spec.pack)
        fingerprint, infos, streams = _tokenise(source, rules, scratch, workers, beam, progress)
        if not streams["train"].blocks:
            raise _too_short(spec, streams["train"].total)
        built = tfds_builder.build(
            {split: stream for split, stream in streams.items() if stream.blocks},
            token_dtype(tokenizer.vocab_size),
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
    sources.split_spec(spec.source)
    tokenizers.split_spec(spec.tokenizer)


def _too_short(spec: TextSpec, tokens: int) -> UserError:
    return UserError(
        f"data.source={spec.source} gives {tokens} tokens to train on, fewer than one block of "
        f"data.length={spec.length}: add text, lower data.length, or lower the held-out fractions."
    )


def _train_documents(source: Source, held_out: HeldOut) -> Iterator[str]:
    """Yields the documents that the tokenizer may be trained on: nothing that is held out."""
    for shard in source.shards["train"]:
        yield from (text for text in shard.read() if split_of(text, held_out) == "train")


def _tokenise(
    source: Source,
    rules: Rules,
    scratch: Path,
    workers: int | None,
    beam: BeamSpec | None,
    progress: bool,
) -> tuple[str, dict[str, list[TokenFileInfo]], dict[str, SplitTokens]]:
    """Writes the token files of all shards; returns what `gather` returns."""
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
    total = sum(job.shard.size for job in jobs)
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        sizes = {pool.submit(tokenise, job, rules, folder): job.shard.size for job in jobs}
        with tqdm(
            total=total or None, desc="tokenise", unit="B", unit_scale=True, disable=not progress
        ) as bar:
            for done in as_completed(sizes):
                text_bytes = done.result()
                bar.update(sizes[done] if total else text_bytes)
    finally:
        # After an error or Ctrl-C, jobs that have not started are cancelled.
        pool.shutdown(cancel_futures=True)


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
