"""Text source -> prepared set of packed tokens."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddm_jax.data.build import tfds_builder as builder
from ddm_jax.data.build.atomic_folder import check_free, publish, temporary_sibling
from ddm_jax.data.build.packing import PACKS
from ddm_jax.data.build.reuse import finished
from ddm_jax.data.build.tfds_builder import BeamSpec
from ddm_jax.data.build.tokenise_shards import (
    Job,
    Piece,
    Rules,
    SplitTokens,
    gather,
    jobs,
    token_dtype,
    tokenise,
    unigram_counts,
)
from ddm_jax.data.sets.text import COUNTS, PreparedSet, PrepareSpec, SplitInfo, is_prepared
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.sources.registry import Source
from ddm_jax.data.splits import SPLITS, HeldOut, split_of, without_own_splits
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError


def prepare(
    spec: PrepareSpec,
    out: Path,
    *,
    workers: int | None = None,
    beam: BeamSpec | None = None,
    progress: bool = True,
) -> PreparedSet:
    """Prepares a spec in the folder `out`, or opens it if that is done.

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
        return finished(out, spec)
    check_free(out)
    source, stamp = sources.open_source(spec.source), spec.stamp()
    wanted = HeldOut(spec.validation_fraction, spec.test_fraction)
    held_out = without_own_splits(wanted, source.shards)
    with temporary_sibling(out) as scratch:
        tokenizer = tokenizers.make(spec.tokenizer, lambda: _train_documents(source, held_out))
        work = Rules(tokenizer, held_out, spec.length, spec.pack)
        pieces_folder = scratch / "pieces"
        pieces_folder.mkdir()
        work_list = jobs(source)
        if beam is None:
            _tokenise_here(work_list, work, pieces_folder, workers, progress)
        else:
            builder.tokenise_with_beam(work_list, work, pieces_folder, beam)
        fingerprint, pieces, streams = gather(pieces_folder, len(work_list), work)
        if not streams["train"].blocks:
            raise UserError(
                f"data.source={spec.source} gives {streams['train'].total} tokens to train on, "
                f"fewer than one block of data.length={spec.length}: add text, lower data.length, "
                "or lower the held-out fractions."
            )
        built = builder.build(
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
        prepared = PreparedSet(
            folder=out,
            spec=spec,
            source_fingerprint=fingerprint,
            source_stamp=stamp,
            tokenizer=tokenizer,
            splits=_split_infos(pieces, streams, counts),
        )
        publish(built, out, prepared.description())
    return prepared


def _check(spec: PrepareSpec) -> None:
    if spec.pack not in PACKS:
        raise UserError(f"data.pack={spec.pack!r} must be one of {', '.join(PACKS)}.")
    if spec.length < 1:
        raise UserError(f"data.length={spec.length} must be at least 1 token.")
    sources.split_spec(spec.source)
    tokenizers.split_spec(spec.tokenizer)


def _train_documents(source: Source, held_out: HeldOut) -> Iterator[str]:
    """What the tokenizer may be trained on: nothing that is held out."""
    for shard in source.shards["train"]:
        yield from (text for text in shard.read() if split_of(text, held_out) == "train")


def _tokenise_here(
    work_list: list[Job], work: Rules, folder: Path, workers: int | None, progress: bool
) -> None:
    total = sum(job.shard.size for job in work_list)
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        sizes = {pool.submit(tokenise, job, work, folder): job.shard.size for job in work_list}
        with tqdm(
            total=total or None, desc="tokenise", unit="B", unit_scale=True, disable=not progress
        ) as bar:
            for done in as_completed(sizes):
                text_bytes = done.result()
                bar.update(sizes[done] if total else text_bytes)
    finally:
        # After an error or Ctrl-C, what has not begun is given up.
        pool.shutdown(cancel_futures=True)


def _split_infos(
    pieces: Mapping[str, list[Piece]], streams: Mapping[str, SplitTokens], counts: np.ndarray
) -> Mapping[str, SplitInfo]:
    infos = {}
    for split, tokens in zip(SPLITS, counts.sum(axis=1).tolist(), strict=True):
        parts = pieces[split]
        stream = streams[split]
        tail = stream.total - stream.blocks * stream.length
        kept_bytes = sum(part.kept_bytes for part in parts)
        infos[split] = SplitInfo(
            blocks=stream.blocks,
            tokens=tokens,
            dropped_tokens=tail + sum(part.dropped for part in parts),
            documents=sum(part.documents for part in parts),
            bytes=sum(part.bytes for part in parts),
            # The tail's text is in the numerator, so its tokens are in the denominator.
            bytes_per_token=kept_bytes / max(1, tokens + tail),
        )
    return infos
