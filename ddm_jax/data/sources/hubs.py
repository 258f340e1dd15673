"""Text from TensorFlow Datasets and from Hugging Face `datasets`, with their own splits.

Both are read through the libraries' own clients, which download what is missing.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddm_jax.data.sources.shards import SHARD_BYTES, Shard
from ddm_jax.data.sources.text_files import FIELD, split_field
from ddm_jax.errors import UserError, how_to_install

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def tfds(name: str, label: str) -> Mapping[str, tuple[Shard, ...]]:
    """Returns the shards by split of a TFDS data set.

    The text is the feature that is named, else the feature `text`, or else the only string feature.

    Args:
      name: a name of the catalogue, or the folder of a built data set, and perhaps `#FEATURE`.
      label: the field of the config and its value, for messages.

    Raises:
      UserError: unknown name, no such feature, or a format without random access (array_record and
        parquet have it).
    """
    name, wanted = split_field(name)
    builder = _tfds_builder(name, label)
    feature = _text_feature(wanted, builder.info.features, label)
    shards = {}
    for split, info in builder.info.splits.items():
        bytes_each = max(1, info.num_bytes // max(1, info.num_examples))
        step = max(1, SHARD_BYTES[0] * 4 // bytes_each)
        shards[split] = tuple(
            Shard(
                functools.partial(_read_tfds, name, split, feature, start, stop, label),
                (stop - start) * bytes_each,
            )
            for start in range(0, info.num_examples, step)
            for stop in [min(start + step, info.num_examples)]
        )
    return _with_our_names(shards)


def hugging_face(name: str, label: str) -> Mapping[str, tuple[Shard, ...]]:
    """Returns the shards by split of a Hugging Face data set, streamed.

    Args:
      name: `REPOSITORY` or `REPOSITORY:CONFIG`, and perhaps `#COLUMN`; the column is `text`
        otherwise.
      label: the field of the config and its value, for messages.

    Raises:
      UserError: the extra is missing, or the set cannot be opened.
    """
    name, column = split_field(name)
    datasets = _hugging_face_library(label)
    repository, _, config = name.partition(":")
    try:
        splits = datasets.load_dataset(repository, config or None, streaming=True)
    except Exception as error:
        raise UserError(
            f"{label} cannot be opened ({_first_line(error)}): give hf:REPOSITORY or "
            "hf:REPOSITORY:CONFIG of a data set that this machine can reach."
        ) from error
    shards = {
        split: tuple(
            Shard(functools.partial(_read_hugging_face, name, split, index, column, label), 0)
            for index in range(data.num_shards)
        )
        for split, data in splits.items()
    }
    return _with_our_names(shards)


def _with_our_names(shards: Mapping[str, tuple[Shard, ...]]) -> Mapping[str, tuple[Shard, ...]]:
    """Renames the splits to train, validation and test, those that have another name for these."""
    return {SPLIT_NAMES.get(split, split): parts for split, parts in shards.items()}


def _tfds_builder(name: str, label: str) -> Any:
    import tensorflow_datasets

    if (Path(name).expanduser() / "dataset_info.json").exists():
        return tensorflow_datasets.builder_from_directory(Path(name).expanduser())
    try:
        builder = tensorflow_datasets.builder(name)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise UserError(
            f"{label} cannot be opened ({_first_line(error)}): give a name of the "
            "TFDS catalogue that this machine can download, or the folder of a built data set."
        ) from error
    return builder


def _text_feature(wanted: str, features: Mapping[str, Any], label: str) -> str:
    strings = [key for key, feature in features.items() if feature.np_dtype in (str, object)]
    if wanted in strings:
        return wanted
    if wanted != FIELD or len(strings) != 1:
        raise UserError(
            f'{label} has no string feature "{wanted}" (it has {", ".join(strings)}): name one as '
            "in tfds:NAME#FEATURE."
        )
    return strings[0]


def _read_tfds(
    name: str, split: str, feature: str, start: int, stop: int, label: str
) -> Iterator[str]:
    try:
        rows = _tfds_builder(name, label).as_data_source(split)
    except NotImplementedError as error:
        raise UserError(
            f"{label} is built in a format without random access: build it again "
            "with file_format=array_record."
        ) from error
    for index in range(start, stop):
        value = rows[index][feature]
        yield value.decode("utf-8") if isinstance(value, bytes) else value


def _read_hugging_face(name: str, split: str, index: int, column: str, label: str) -> Iterator[str]:
    datasets = _hugging_face_library(label)
    repository, _, config = name.partition(":")
    rows = datasets.load_dataset(repository, config or None, split=split, streaming=True)
    for number, row in enumerate(rows.shard(rows.num_shards, index)):
        if not isinstance(row.get(column), str):
            raise UserError(
                f"{label}, split {split}, row {number} of shard {index} has no string "
                f'"{column}" (it has {sorted(row)}): name a column as in hf:NAME#COLUMN.'
            )
        yield row[column]


def _hugging_face_library(label: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{label} needs Hugging Face datasets: {how_to_install('hf')}.") from None
    return datasets


def _first_line(error: Exception) -> str:
    lines = itertools.chain(str(error).strip().splitlines(), [type(error).__name__])
    return next(lines).rstrip(".:")
