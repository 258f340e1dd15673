"""Writes blocks of tokens as a TFDS data set in array_record format, in this process or with Beam.

The features are `tokens` (uint16[L] or int32[L], stored as raw bytes) and `length`, the number of
real tokens. Blocks keep their order on disk.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from ddm_jax.data.build.packing import block_ranges
from ddm_jax.data.build.tokenise_shards import Rules, ShardJob, SplitTokens, read_blocks, tokenise
from ddm_jax.errors import UserError, how_to_install

READ_BLOCKS = 1024

KeyedExample = tuple[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class BeamSpec:
    """Where a Beam pipeline runs.

    Attributes:
      runner: name of the runner.
      options: pipeline options, spelt as Beam's own flags.
    """

    runner: str = "DirectRunner"
    options: tuple[str, ...] = ()


class PackedText(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # mypy does not see __init_subclass__ of a library without types
    """Writes `streams` (by split) in this process."""

    VERSION = tfds.core.Version("1.0.0")
    # Otherwise TFDS looks for checksums of downloads next to this file.
    code_path = None

    def __init__(
        self, streams: Mapping[str, SplitTokens], dtype: np.dtype, data_dir: Path, progress: bool
    ) -> None:
        self._streams = streams
        self._dtype = dtype
        self._progress = progress
        super().__init__(data_dir=str(data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        length = next(iter(self._streams.values())).length
        return UnpublishedInfo(
            builder=self,
            description="Text as packed blocks of tokens, prepared by ddm_jax.",
            features=tfds.features.FeaturesDict(
                {
                    "tokens": tfds.features.Tensor(
                        shape=(length,), dtype=self._dtype, encoding=tfds.features.Encoding.BYTES
                    ),
                    "length": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            # Grain shuffles when it reads; here the order is that of the corpus.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._streams}

    def _generate_examples(self, split: str) -> Iterator[KeyedExample]:
        stream = self._streams[split]
        with tqdm(
            total=stream.blocks, desc=f"write {split}", unit=" blocks", disable=not self._progress
        ) as bar:
            for chunk in block_ranges(stream.blocks, READ_BLOCKS):
                yield from _examples(chunk, stream)
                bar.update(chunk[1] - chunk[0])


class BeamPackedText(PackedText):
    """Writes the same data set from the workers of a Beam pipeline."""

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
            | f"{split} read" >> beam.FlatMap(functools.partial(_examples, stream=stream))
            for split, stream in self._streams.items()
        }


class UnpublishedInfo(tfds.core.DatasetInfo):
    """The description of a data set that is not published by TFDS."""

    def initialize_from_bucket(self) -> None:
        """Does not look for a published copy, for which TFDS leaves an empty folder in /tmp."""


def build(
    streams: Mapping[str, SplitTokens],
    dtype: np.dtype,
    folder: Path,
    *,
    beam: BeamSpec | None,
    progress: bool,
) -> Path:
    """Writes the data set below `folder`.

    Args:
      streams: the tokens by split; each split must have at least one block.
      dtype: of the stored ids.
      folder: where to write.
      beam: writes with Beam; None writes in this process.
      progress: whether to show progress bars on stderr.

    Returns:
      The folder of dataset_info.json.
    """
    kind = PackedText if beam is None else BeamPackedText
    builder = kind(streams, dtype, folder, progress)
    config = tfds.download.DownloadConfig(
        beam_runner=None if beam is None else beam.runner,
        beam_options=None if beam is None else _beam_options(beam),
    )
    return write(builder, folder, config)


def write(
    builder: tfds.core.DatasetBuilder,
    folder: Path,
    config: tfds.download.DownloadConfig | None = None,
) -> Path:
    """Writes the data set of a builder below `folder`; returns the folder of dataset_info.json."""
    tfds.disable_progress_bar()  # one bar is enough
    # TFDS prints that it downloads to a folder, which is about to be renamed.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=folder / "downloads",
            download_config=config,
            file_format=tfds.core.FileFormat.ARRAY_RECORD,
        )
    return Path(builder.data_dir)


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


def _examples(chunk: tuple[int, int], stream: SplitTokens) -> Iterator[KeyedExample]:
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
