"""The folder of a prepared set: what sets of text and sets of pairs have in common.

The folder is a TFDS data set (`tfds.builder_from_directory` opens it) with three additions: the
tokenizer, `unigram_counts.npy` (int64[3, V]: train, validation, test) and `ddm_jax.json`, which is
written last and so marks the set as finished.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddm_jax.data.sets.text_records import RecordSpan
from ddm_jax.data.splits import SPLITS
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError

FORMAT = 1
MARKER = "ddm_jax.json"
COUNTS = "unigram_counts.npy"

T = TypeVar("T")


def word(spec: str) -> str:
    """Turns `kind:path` into kind_stem, with the stem of the last part of the path that has one."""
    kind, _, name = spec.partition(":")
    stems = ["".join(re.findall(r"\w+", Path(part).stem)) for part in Path(name).parts]
    return "_".join([kind, *[stem for stem in stems if stem][-1:]])


def is_prepared(folder: Path) -> bool:
    """Returns whether the folder holds a finished set."""
    return (folder / MARKER).is_file()


def read_set(
    folder: Path, kind: Callable[..., T], spec: Callable[..., Any], info: Callable[..., Any]
) -> T:
    """Opens a finished set.

    Args:
      folder: the folder of the set.
      kind: makes the set, `PreparedText` or `PreparedPairs`.
      spec: makes its spec, `TextSpec` or `PairSpec`.
      info: makes the record of a split, `TextSplitInfo` or `PairSplitInfo`.

    Raises:
      UserError: see `read_description`.
    """
    record = read_description(folder)
    try:
        return kind(
            folder=folder,
            spec=spec(**record["spec"]),
            source_fingerprint=record["source_fingerprint"],
            source_stamp=record["source_stamp"],
            tokenizer=tokenizers.load(folder),
            splits={split: info(**figures) for split, figures in record["splits"].items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def read_description(folder: Path) -> dict[str, Any]:
    """Reads what `describe` returned when the set in the folder was finished.

    Raises:
      UserError: there is no finished set, it has another format, or its files are damaged.
    """
    if not is_prepared(folder):
        raise UserError(
            f"{folder} is not a prepared set (it has no {MARKER}): give the folder that "
            "`python -m ddm_jax.prepare` wrote, or text:FOLDER to read the text files beneath it."
        )
    try:
        record: dict[str, Any] = json.loads((folder / MARKER).read_text())
        has = record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    if has != FORMAT:
        raise UserError(
            f"{folder} has format {has}, this version reads {FORMAT}: prepare the data again."
        )
    return record


def describe(
    spec: Any, source_fingerprint: str, source_stamp: str, tokenizer: Tokenizer, splits: Mapping
) -> dict[str, Any]:
    """Returns the description of a set, as `ddm_jax.json` has it; the arguments are its fields."""
    return {
        "format": FORMAT,
        "spec": dataclasses.asdict(spec),
        "source_fingerprint": source_fingerprint,
        "source_stamp": source_stamp,
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
        },
        "splits": {split: dataclasses.asdict(info) for split, info in splits.items()},
    }


def cross_entropy(counts: np.ndarray, split: str) -> float:
    """Returns the nats per token of a split under the train split's frequencies.

    Args:
      counts: int64[3, V], how often each id occurs in each split; the frequencies are the counts of
        train, each plus one.
      split: the split whose tokens are coded.
    """
    smoothed = counts[SPLITS.index("train")] + 1
    tokens = counts[SPLITS.index(split)]
    return float(tokens @ -np.log(smoothed / smoothed.sum()) / tokens.sum())


def record_spans(folder: Path, split: str) -> tuple[RecordSpan, ...]:
    """Returns where the records of a split are."""
    import tensorflow_datasets as tfds

    spans = tfds.builder_from_directory(folder).info.splits[split].file_instructions
    return tuple(RecordSpan(s.filename, s.skip, s.take, s.examples_in_shard) for s in spans)


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / MARKER} is damaged ({error}): prepare the data again.")
