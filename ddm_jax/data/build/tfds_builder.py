"""Writes records as a TFDS data set in array_record format, in this process or with Beam.

Records keep their order on disk. In this process they are written as they come: TFDS's own builder
would first hold up to 1 GB of them in memory.
"""

import contextlib
import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ddm_jax.data.build.packing import block_ranges
from ddm_jax.data.build.tokenise_shards import (
    BeamSpec,
    Rules,
    ShardJob,
    SplitTokens,
    read_blocks,
    tokenise,
)
from ddm_jax.errors import UserError, how_to_install
from ddm_jax.progress import ProgressBar

DESCRIPTION = "Text as packed blocks of tokens, prepared by ddm_jax."
READ_BLOCKS = 1024
FILE_BYTES = 2**28  # of records in an array_record file, at most
FILE_RECORDS = 2**17  # likewise; array_record keeps about 100 bytes of each until it closes a file
WRITE_RECORDS = 4096  # after which TFDS's writer updates its metadata

Record = dict[str, Any]


def build(
    streams: Mapping[str, SplitTokens],
    folder: Path,
    *,
    beam: BeamSpec | None,
    progress: bool,
) -> Path:
    """Writes blocks of tokens below `folder`.

    The features are `tokens` (uint16[L] or int32[L], stored as raw bytes) and `length`, the number
    of real tokens.

    Args:
      streams: the tokens by split; each split must have at least one block.
      folder: where to write.
      beam: writes with Beam; None writes in this process.
      progress: whether to show progress on stderr.

    Returns:
      The folder of dataset_info.json.
    """
    if beam is not None:
        return _build_with_beam(streams, folder, beam)
    any_stream = next(iter(streams.values()))
    examples = {split: _all_examples(split, stream, progress) for split, stream in streams.items()}
    record_bytes = any_stream.length * any_stream.dtype.itemsize
    per_file = min(FILE_BYTES // record_bytes, FILE_RECORDS)
    return write("packed_text", DESCRIPTION, _features(any_stream), examples, folder, per_file)


def write(
    name: str,
    description: str,
    features: tfds.features.FeaturesDict,
    records: Mapping[str, Iterable[Record]],
    folder: Path,
    records_per_file: int,
) -> Path:
    """Writes records below `folder` in the order in which they come.

    Args:
      name: of the data set.
      description: of the data set, for its readers.
      features: of a record.
      records: by split.
      folder: where to write.
      records_per_file: the most records in one file.

    Returns:
      The folder of dataset_info.json.
    """
    version = tfds.core.Version("1.0.0")
    data_dir = folder / name / str(version)
    data_dir.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(name, version, str(data_dir), __name__)
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=features,
        # Grain shuffles when it reads; here the order is that of the text.
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(
        info, max(1, records_per_file), file_format=tfds.core.FileFormat.ARRAY_RECORD.value
    )
    writer.initialize_splits(list(records))
    for split, examples in records.items():
        remaining = iter(examples)
        while chunk := list(itertools.islice(remaining, WRITE_RECORDS)):
            writer.add_examples({split: chunk})
    writer.close_all()
    return data_dir


class BeamPackedText(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # mypy does not see __init_subclass__ of a library without types
    """Writes the same data set from the workers of a Beam pipeline."""

    VERSION = tfds.core.Version("1.0.0")
    # Otherwise TFDS looks for checksums of downloads next to this file.
    code_path = None

    def __init__(self, streams: Mapping[str, SplitTokens], data_dir: Path) -> None:
        self._streams = streams
        super().__init__(data_dir=str(data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        return UnpublishedInfo(
            builder=self,
            description=DESCRIPTION,
            features=_features(next(iter(self._streams.values()))),
            disable_shuffling=True,
        )

    # TFDS inspects the signature: a builder that takes `pipeline` runs on Beam.
    def _split_generators(  # type: ignore[override]
        self, dl_manager: Any, pipeline: Any
    ) -> dict[str, Any]:
        del dl_manager
        beam = _beam()
        return {
            split: pipeline
            | f"{split} ranges" >> beam.Create(list(block_ranges(stream.blocks, READ_BLOCKS)))
            | f"{split} spread" >> beam.Reshuffle()
            | f"{split} read" >> beam.FlatMap(functools.partial(_keyed_examples, stream=stream))
            for split, stream in self._streams.items()
        }

    def _generate_examples(self) -> None:
        raise NotImplementedError  # abstract in the base class; the pipeline reads instead


class UnpublishedInfo(tfds.core.DatasetInfo):
    """The description of a data set that is not published by TFDS."""

    def initialize_from_bucket(self) -> None:
        """Does not look for a published copy, for which TFDS leaves an empty folder in /tmp."""


def tokenise_with_beam(jobs: list[ShardJob], rules: Rules, folder: Path, beam: BeamSpec) -> None:
    """Runs `tokenise` on Beam workers, which must all see `folder`."""
    apache_beam = _beam()
    with apache_beam.Pipeline(runner=beam.runner, options=_beam_options(beam)) as pipeline:
        _ = (
            pipeline
            | "shards" >> apache_beam.Create(jobs)
            | "spread" >> apache_beam.Reshuffle()
            | "tokenise" >> apache_beam.Map(functools.partial(tokenise, rules=rules, folder=folder))
        )


def _build_with_beam(streams: Mapping[str, SplitTokens], folder: Path, beam: BeamSpec) -> Path:
    tfds.disable_progress_bar()
    builder = BeamPackedText(streams, folder)
    config = tfds.download.DownloadConfig(beam_runner=beam.runner, beam_options=_beam_options(beam))
    # TFDS prints that it downloads to a folder, which is about to be renamed.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=folder / "downloads",
            download_config=config,
            file_format=tfds.core.FileFormat.ARRAY_RECORD,
        )
    return Path(builder.data_dir)


def _features(stream: SplitTokens) -> tfds.features.FeaturesDict:
    tokens = tfds.features.Tensor(
        shape=(stream.length,), dtype=stream.dtype, encoding=tfds.features.Encoding.BYTES
    )
    return tfds.features.FeaturesDict(
        {"tokens": tokens, "length": tfds.features.Scalar(dtype=np.int32)}
    )


def _all_examples(split: str, stream: SplitTokens, progress: bool) -> Iterator[Record]:
    with ProgressBar(stream.blocks, unit="block", label=f"write {split}", shown=progress) as bar:
        for chunk in block_ranges(stream.blocks, READ_BLOCKS):
            for _, example in _keyed_examples(chunk, stream):
                yield example
            bar.update(chunk[1])


def _keyed_examples(chunk: tuple[int, int], stream: SplitTokens) -> Iterator[tuple[int, Record]]:
    tokens, valid = read_blocks(stream, *chunk)
    for key, row, length in zip(itertools.count(chunk[0]), tokens, valid, strict=False):
        yield key, {"tokens": row, "length": length}


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError:
        raise UserError(
            f"--beam_runner needs Apache Beam: {how_to_install('beam')}, or leave the flag out."
        ) from None
    return apache_beam


def _beam_options(beam: BeamSpec) -> Any:
    return _beam().options.pipeline_options.PipelineOptions(list(beam.options))
